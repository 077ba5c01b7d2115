package mend_test

import (
	"fmt"
	"strings"
	"testing"

	"rebound/examples/reprocess/mend"
)

func TestRules(t *testing.T) {
	rules := mend.ExampleRules()
	long := strings.Repeat("x", 9000)
	for _, c := range []struct{ name, code, message, user, want string }{
		{"a uid that is missing becomes the email", "required_field", "uid is required", `{"email":"a@example.com","n":12345678901234567890}`,
			`{"email":"a@example.com","n":12345678901234567890,"uid":"a@example.com"}`},
		{"without an email there is nothing to do", "required_field", "uid is required", `{"n":1}`, ``},
		{"another field that is required is not ours", "required_field", "name is required", `{"email":"a@example.com"}`, ``},
		{"an email that is none is left out", "invalid_email", "", `{"uid":"u","email":"x"}`, `{"uid":"u"}`},
		{"a name that is too long is cut", "too_long", "", `{"display_name":"` + long + `"}`, `{"display_name":"` + long[:256] + `"}`},
		{"properties get names that are taken", "invalid_property_name", "", `{"properties":{"1st plan":1,"ok":2}}`, `{"properties":{"ok":2,"p_1st_plan":1}}`},
		{"properties that are none stay", "invalid_property_name", "", `{"properties":"none"}`, ``},
		{"values that are too long are cut", "property_too_large", "", `{"properties":{"a":"` + long + `","b":1}}`, `{"properties":{"a":"` + long[:8000] + `","b":1}}`},
		{"a code without a rule", "user_deleted", "", `{"uid":"u"}`, ``},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := rules.Apply(c.code, c.message, []byte(c.user))
			if err != nil || string(got) != c.want {
				t.Errorf("%.300s %v, want %.300s", got, err, c.want)
			}
		})
	}
}

func TestRulesThatAreNone(t *testing.T) {
	for _, text := range []string{``, `{}`, `[{"code":1}]`, `[{"cod":"x"}]`, `[{"code":"x","message":"("}]`} {
		if _, err := mend.ParseRules([]byte(text)); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}

func ExampleRules_Apply() {
	rules, err := mend.ParseRules([]byte(`[{"code": "required_field", "copy": {"/uid": "/email"}}]`))
	if err != nil {
		fmt.Println(err)
		return
	}
	user, err := rules.Apply("required_field", "uid is required", []byte(`{"email":"ada@example.com"}`))
	fmt.Println(string(user), err)
	// Output: {"email":"ada@example.com","uid":"ada@example.com"} <nil>
}

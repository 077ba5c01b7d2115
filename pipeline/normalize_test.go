package pipeline

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

func TestCodesBecomeSnakeCase(t *testing.T) {
	for _, c := range []struct{ literal, want string }{
		{`"required_field"`, "required_field"},
		{`"Required Field"`, "required_field"},
		{`"requiredField"`, "required_field"},
		{`"RequiredField"`, "required_field"},
		{`"REQUIRED-FIELD"`, "required_field"},
		{`"  required   field!  "`, "required_field"},
		{`"_required__field_"`, "required_field"},
		{`"HTTPError"`, "http_error"},
		{`"error2Big"`, "error2_big"},
		{`"E42"`, "e42"},
		{`"\u00c4rger mit \"Umlauten\""`, "ärger_mit_umlauten"},
		{`""`, "unknown"},
		{`" - "`, "unknown"},
		{``, "unknown"},
		{`"a\u0000b"`, "a_b"},
	} {
		if got := string(appendCode(nil, []byte(c.literal))); got != c.want {
			t.Errorf("%s becomes %q, want %q", c.literal, got, c.want)
		}
	}
}

func TestMessagesAreTidied(t *testing.T) {
	for _, c := range []struct{ literal, want string }{
		{`"uid is required"`, `"uid is required"`},
		{`"  uid   is\t\nrequired "`, `"uid is required"`},
		{`"\u00a0no-break\u2003em "`, `"no-break em"`},
		{`"say \"hi\" \\ \u0001"`, `"say \"hi\" \\ \u0001"`},
		{`"caf\u00e9"`, `"café"`},
		{`"lone \ud800"`, "\"lone \uFFFD\""},
		{"\"broken \xff\"", "\"broken \uFFFD\""},
		{`"   "`, `""`},
		{`""`, `""`},
		{``, `""`},
	} {
		if got := string(appendMessage(nil, []byte(c.literal))); got != c.want {
			t.Errorf("%s becomes %s, want %s", c.literal, got, c.want)
		}
	}
}

func TestUsersStayAsTheyAre(t *testing.T) {
	for _, c := range []struct{ user, want string }{
		{`{"a":1}`, `{"a":1}`},
		{"{ \"a\" : [ 1 ,\t2 , {\r\n} ] }", `{"a":[1,2,{}]}`},
		{`{"a": " x  y "}`, `{"a":" x  y "}`},
		{`{"b":1e400,"a":12345678901234567890,"c":-0.0,"d":1.10}`, `{"b":1e400,"a":12345678901234567890,"c":-0.0,"d":1.10}`},
		{`{"a":1,"a":2}`, `{"a":1,"a":2}`},
		{`{ "a":"\u00e9\/\ud800\"" }`, `{"a":"\u00e9\/\ud800\""}`},
		{"{\"a\":\"\xff\xfe\"}", "{\"a\":\"\uFFFD\uFFFD\"}"},
		{"{ \"\xff\":1}", "{\"\uFFFD\":1}"},
		{`{"a\\":1, "b\\\"":2}`, `{"a\\":1,"b\\\"":2}`},
	} {
		if got := string(appendCompact(nil, []byte(c.user))); got != c.want {
			t.Errorf("%s becomes %s, want %s", c.user, got, c.want)
		}
	}
}

var snakeCase = regexp.MustCompile(`^[\pL\pN\pM]+(_[\pL\pN\pM]+)*$`)

func FuzzCode(f *testing.F) {
	f.Add("Required Field")
	f.Add("HTTPError__x")
	f.Fuzz(func(t *testing.T, code string) {
		literal, _ := json.Marshal(code)
		got := appendCode(nil, literal)
		if !snakeCase.Match(got) {
			t.Errorf("%q becomes %q", code, got)
		}
		again, _ := json.Marshal(string(got))
		if twice := appendCode(nil, again); !bytes.Equal(twice, got) {
			t.Errorf("%q becomes %q, and that %q", code, got, twice)
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add(" a  b ")
	f.Fuzz(func(t *testing.T, message string) {
		literal, err := jsontext.AppendQuote(nil, strings.ToValidUTF8(message, "\uFFFD"))
		if err != nil {
			t.Skip()
		}
		var got string
		if err := json.Unmarshal(appendMessage(nil, literal), &got); err != nil {
			t.Fatal(err)
		}
		if want := strings.Join(strings.Fields(strings.ToValidUTF8(message, "\uFFFD")), " "); got != want {
			t.Errorf("%q becomes %q, want %q", message, got, want)
		}
	})
}

// FuzzUser holds what becomes of a user against encoding/json's Compact, which
// also keeps everything but white space, and may come with invalid UTF-8.
func FuzzUser(f *testing.F) {
	f.Add([]byte(`{ "a" : [1, "x y", {"b":null}] }`))
	f.Add([]byte("{\"a\\\\\":\"\xff \\\" \"}"))
	f.Fuzz(func(t *testing.T, user []byte) {
		if !json.Valid(user) || bytes.TrimLeft(user, " \t\r\n")[0] != '{' {
			return
		}
		user = bytes.TrimSpace(user)
		got := appendCompact(nil, user)
		if !utf8.Valid(got) {
			t.Fatalf("%q becomes %q, which is no UTF-8", user, got)
		}
		var want bytes.Buffer
		if err := json.Compact(&want, toValidUTF8(user)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%q becomes %q, want %q", user, got, want.Bytes())
		}
	})
}

package pipeline_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"rebound/pipeline"
)

const fieldsKey = "0123456789abcdef"

func hash(text string) string {
	mac := hmac.New(sha256.New, []byte(fieldsKey))
	mac.Write([]byte(text))
	return pipeline.HashPrefix + hex.EncodeToString(mac.Sum(nil))
}

func hiding(t testing.TB, drop, hash string) *pipeline.Fields {
	t.Helper()
	fields, err := pipeline.NewFields(strings.Fields(drop), strings.Fields(hash), []byte(fieldsKey))
	if err != nil {
		t.Fatal(err)
	}
	return fields
}

func TestFieldsAreHidden(t *testing.T) {
	for _, c := range []struct{ name, drop, hash, user, want, key string }{
		{"nothing is said", "", "", `{"uid":"u","email":"e"}`, `{"uid":"u","email":"e"}`, "u"},
		{"a member is dropped", "/email", "", `{"uid":"u","email":"e","n":1}`, `{"uid":"u","n":1}`, "u"},
		{"the first member is dropped", "/uid", "", `{"uid":"u","n":1}`, `{"n":1}`, "job"},
		{"the only member is dropped", "/uid", "", `{"uid":"u"}`, `{}`, "job"},
		{"a member is hashed, the key with it", "", "/uid", `{"uid":"u"}`, `{"uid":"` + hash("u") + `"}`, hash("u")},
		{"what is dropped is not hashed", "/uid", "/uid", `{"uid":"u"}`, `{}`, "job"},
		{"the text is hashed, not its escapes", "", "/email", `{"email":"\u0061"}`, `{"email":"` + hash("a") + `"}`, "job"},
		{"a number is hashed as it is written", "", "/n", `{"n":1.0e2}`, `{"n":"` + hash("1.0e2") + `"}`, "job"},
		{"an object is hashed without white space", "", "/o", `{"o": {"a" : 1}}`, `{"o":"` + hash(`{"a":1}`) + `"}`, "job"},
		{"null stays null", "", "/n", `{"n":null}`, `{"n":null}`, "job"},
		{"deep within", "/properties/a/b", "", `{"properties":{"a":{"b":1,"c":2},"b":3}}`, `{"properties":{"a":{"c":2},"b":3}}`, "job"},
		{"any member", "/properties/*/phone", "", `{"properties":{"home":{"phone":1},"work":{"phone":2,"x":3}}}`, `{"properties":{"home":{},"work":{"x":3}}}`, "job"},
		{"any member, and one more", "/p/*", "/p/a/b", `{"p":{"a":{"b":1},"c":2}}`, `{"p":{}}`, "job"},
		{"elements of an array keep their places", "/list/*/a", "", `{"list":[{"a":1},2,{"a":3,"b":4}]}`, `{"list":[{},2,{"b":4}]}`, "job"},
		{"whole elements become null", "/list/*", "", `{"list":[1,[2],{"a":3}]}`, `{"list":[null,null,null]}`, "job"},
		{"an element by its position", "/list/1 /list/2/a", "/list/0", `{"list":["x",2,{"a":3},4]}`, `{"list":["` + hash("x") + `",null,{},4]}`, "job"},
		{"a name that stands twice is hidden twice", "/a", "", `{"a":1,"b":2,"a":3}`, `{"b":2}`, "job"},
		{"a name in escapes", "/email", "", `{"\u0065mail":1,"b":2}`, `{"b":2}`, "job"},
		{"a name with a slash and a tilde", "/a~1b/c~0d", "", `{"a/b":{"c~d":1,"e":2}}`, `{"a/b":{"e":2}}`, "job"},
		{"braces and quotes in strings", "/b", "", `{"a":"}\\\"],","b":"{[","c":"\\"}`, `{"a":"}\\\"],","c":"\\"}`, "job"},
		{"a pointer into what is no object", "/a/b", "", `{"a":"b","c":[1]}`, `{"a":"b","c":[1]}`, "job"},
		{"everything", "/*", "", `{"uid":"u","b":2}`, `{}`, "job"},
	} {
		t.Run(c.name, func(t *testing.T) {
			uid := ""
			if strings.Contains(c.user, `"uid":"u"`) {
				uid = `"u"`
			}
			r := result(`"code"`, `"message"`, c.user, uid)
			var batch pipeline.Batch
			run := pipeline.NewRun(pipeline.Form{Fields: hiding(t, c.drop, c.hash)}, "job", 1)
			batch.Transform(run, &pipeline.Page{Results: []pipeline.Result{r}}, 0, 0, 0, generous)
			_, user, _ := strings.Cut(string(batch.Messages[0].Value), `"user":`)
			if user != c.want+"}" {
				t.Errorf("the user is %s, want %s", user, c.want)
			}
			if string(batch.Messages[0].Key) != c.key {
				t.Errorf("the key is %s", batch.Messages[0].Key)
			}
		})
	}
}

func TestDeadLettersHideFields(t *testing.T) {
	large := strings.Repeat("x", 3000)
	for _, c := range []struct {
		name, value string
		result      pipeline.Result
	}{
		{"too large: the fields are hidden in it, what has none is as received", `{"code":[ 1 ],"user":{"n":1,"x":"` + large + `"}}`,
			pipeline.Result{Object: true, Subject: []byte(`{"email":"secret","n":1,"x":"` + large + `"}`),
				Raw: []byte(`{ "code": [ 1 ], "user": {"email":"secret", "n" : 1, "x":"` + large + `"}}`)}},
		{"the hash of an object is that of a failure, which has no white space", `{"user":{"home":"` + hash(`{"street":1}`) + `","x":"` + large + `"}}`,
			pipeline.Result{Object: true, Subject: []byte(`{"home":{"street":1},"x":"` + large + `"}`),
				Raw: []byte(`{"user":{"home":{ "street" : 1 },"x":"` + large + `"}}`)}},
		{"no user: nothing is shown", "", pipeline.Result{Object: true, Raw: []byte(`{"usr":{"email":"secret"}}`)}},
		{"no object: nothing is shown", "", pipeline.Result{Raw: []byte(`["secret"]`)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var batch pipeline.Batch
			run := pipeline.NewRun(pipeline.Form{Fields: hiding(t, "/email", "/home")}, "job", 1)
			batch.Transform(run, &pipeline.Page{Results: []pipeline.Result{c.result}}, 0, 0, 0, pipeline.Limits{Failure: 1000, DeadLetter: 1 << 20})
			if m := batch.Messages[0]; m.Topic != pipeline.DeadLetters || string(m.Value) != c.value {
				t.Errorf("%d: %.200s", m.Topic, m.Value)
			}
			withheld := ""
			for _, h := range batch.Messages[0].Headers {
				if h.Name == "withheld" {
					withheld = string(h.Value)
				}
			}
			if (c.value == "") != (withheld == fmt.Sprint(len(c.result.Raw))) {
				t.Errorf("header withheld is %q", withheld)
			}
		})
	}
}

// FuzzFields compares what is left of a user with what encoding/json leaves.
func FuzzFields(f *testing.F) {
	for _, user := range []string{`{"email":"a","b":{"email":1}}`, `{"a":[{"email":1},{"c":2}],"email":null}`, `{"b":{"c":{"d":[1,{"d":2}]}}}`, `{"*":{"email":"x"}}`, `{"":{"":1}}`, `{"a":[[1],{"1":2},3]}`} {
		f.Add(user, "/email", "/b/*/d", "/a/*")
		f.Add(user, "/a/0", "/b/c/d/1/d", "/a/1")
	}
	f.Fuzz(func(t *testing.T, user, drop1, drop2, hash1 string) {
		var model any
		if json.Unmarshal([]byte(user), &model) != nil || len(user) == 0 {
			return
		}
		object, ok := model.(map[string]any)
		if !ok || hasTwins([]byte(user)) {
			return
		}
		fields, err := pipeline.NewFields([]string{drop1, drop2}, []string{hash1}, []byte(fieldsKey))
		if err != nil {
			return
		}
		var batch pipeline.Batch
		r := pipeline.Result{Object: true, Raw: []byte(`{"user":` + user + `}`), Subject: []byte(user)}
		batch.Transform(pipeline.NewRun(pipeline.Form{Fields: fields}, "job", 1), &pipeline.Page{Results: []pipeline.Result{r}}, 0, 0, 0, generous)
		var got struct{ User any }
		if err := json.Unmarshal(batch.Messages[0].Value, &got); err != nil {
			t.Fatalf("%q is no JSON: %v", batch.Messages[0].Value, err)
		}
		for _, pointer := range []string{drop1, drop2} {
			hideModel(object, path(pointer), func(parent map[string]any, name string) { delete(parent, name) })
		}
		// The hashes differ from the model's where numbers are written in their
		// own way; that something is hashed does not.
		hideModel(object, path(hash1), func(parent map[string]any, name string) {
			if parent[name] != nil {
				parent[name] = "#"
			}
		})
		want, _ := json.Marshal(object)
		have, _ := json.Marshal(unhashed(got.User))
		if string(want) != string(have) {
			t.Fatalf("drop %q %q, hash %q:\n%s\nbecame\n%s, want\n%s", drop1, drop2, hash1, user, have, want)
		}
	})
}

func path(pointer string) []string {
	names := strings.Split(pointer[1:], "/")
	for i := range names {
		names[i] = strings.ReplaceAll(strings.ReplaceAll(names[i], "~1", "/"), "~0", "~")
	}
	return names
}

func hideModel(value any, path []string, hide func(parent map[string]any, name string)) {
	switch value := value.(type) {
	case map[string]any:
		for name := range value {
			if path[0] != "*" && path[0] != name {
				continue
			}
			if len(path) == 1 {
				hide(value, name)
			} else {
				hideModel(value[name], path[1:], hide)
			}
		}
	case []any:
		for i := range value {
			if path[0] != "*" && path[0] != strconv.Itoa(i) {
				continue
			}
			if len(path) > 1 {
				hideModel(value[i], path[1:], hide)
				continue
			}
			element := map[string]any{"": value[i]}
			hide(element, "")
			value[i] = element[""]
		}
	}
}

// unhashed replaces hashes by the model's.
func unhashed(value any) any {
	switch value := value.(type) {
	case string:
		if strings.HasPrefix(value, pipeline.HashPrefix) {
			return "#"
		}
	case map[string]any:
		for name := range value {
			value[name] = unhashed(value[name])
		}
	case []any:
		for i := range value {
			value[i] = unhashed(value[i])
		}
	}
	return value
}

// hasTwins tells whether an object has a name twice, of which the model keeps one.
func hasTwins(value []byte) bool {
	var back bytes.Buffer
	var any_ any
	json.Unmarshal(value, &any_)
	encoded, _ := json.Marshal(any_)
	json.Compact(&back, value)
	return bytes.Count(encoded, []byte(`":`)) != bytes.Count(back.Bytes(), []byte(`":`))
}

func BenchmarkTransformHiding(b *testing.B) {
	benchmarkTransform(b, pipeline.Form{Fields: hiding(b, "/email", "/uid")})
}

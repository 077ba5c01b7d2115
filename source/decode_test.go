package source

import (
	"encoding/json"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"rebound/internal/simulator"
	"rebound/pipeline"
)

func TestDecodeRefusesWhatIsNoPage(t *testing.T) {
	for _, body := range []string{
		``, ` `, `null`, `[]`, `"x"`, `{`, `{"results":[`, `{"results":[{"user":{"a":1`, `{"results":{}}`, `{"results":"x"}`,
		`{"total_records":"many"}`, `{"total_records":-1}`, `{"total_records":1.5}`, `{"next_page_token":5}`,
		`{} trailing`, `{}{}`, `<html>`, `{"results":[}`, `{"a" 1}`, `{1:2}`, `{"results":[tru]}`,
	} {
		if _, err := newDecoder(pipeline.Users).decode([]byte(body), ""); err == nil {
			t.Errorf("%q is taken for a page", body)
		}
	}
}

func TestDecodeErrorsDoNotQuoteThePage(t *testing.T) {
	_, err := newDecoder(pipeline.Users).decode([]byte(`{"results":[{"user":{"email":ada@example.com}}]}`), "")
	if err == nil || strings.Contains(err.Error(), "ada") || strings.Contains(err.Error(), "email") {
		t.Errorf("the error quotes personal data: %v", err)
	}
}

func TestDecodePointsIntoTheBody(t *testing.T) {
	const body = ` { "total_records" : "2" , "results" : [ {"code":"c" , "message" : "m\u0021", "user" : { "uid" : "u\/1", "n": 1e400 } , "x":{"user":{}} } , 17 ] ,"next_page_token":"n\u003d"} `
	page, err := newDecoder(pipeline.Users).decode([]byte(body), "t")
	if err != nil {
		t.Fatal(err)
	}
	if page.Token != "t" || page.Next != "n=" || page.TotalRecords != 2 || len(page.Results) != 2 {
		t.Fatalf("got %+v", page)
	}
	first, second := page.Results[0], page.Results[1]
	for _, c := range []struct{ what, got, want string }{
		{"raw", string(first.Raw), `{"code":"c" , "message" : "m\u0021", "user" : { "uid" : "u\/1", "n": 1e400 } , "x":{"user":{}} }`},
		{"code", string(first.Code), `"c"`},
		{"message", string(first.Message), `"m\u0021"`},
		{"user", string(first.Subject), `{ "uid" : "u\/1", "n": 1e400 }`},
		{"uid", string(first.UID), `"u\/1"`},
		{"raw of a number", string(second.Raw), `17`},
	} {
		if c.got != c.want {
			t.Errorf("%s is %s, want %s", c.what, c.got, c.want)
		}
	}
	if !first.Object || second.Object {
		t.Error("an object is not told from a number")
	}
}

func TestOfANameThatStandsTwiceTheLastOneCounts(t *testing.T) {
	const body = `{"results":[{"code":"a","code":"b","user":{"uid":"x"},"user":{"uid":"y","uid":"z"}},{"user":{},"user":null},{"code":"a","code":1,"user":{"uid":"x","uid":2}}]}`
	page, err := newDecoder(pipeline.Users).decode([]byte(body), "")
	if err != nil {
		t.Fatal(err)
	}
	r := page.Results
	if string(r[0].Code) != `"b"` || string(r[0].UID) != `"z"` || string(r[0].Subject) != `{"uid":"y","uid":"z"}` {
		t.Errorf("got %s %s %s", r[0].Code, r[0].UID, r[0].Subject)
	}
	if r[1].Subject != nil || r[2].Code != nil || r[2].UID != nil {
		t.Errorf("an earlier value counts: %s %s %s", r[1].Subject, r[2].Code, r[2].UID)
	}
}

func TestNextTokenIsFoundOnlyWhereItIsSure(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{`{"results":[],"total_records":"1","next_page_token":"a="}`, "a="},
		{`{"next_page_token":"a=","total_records":"1"}`, "a="},
		{"{\"results\":[] , \"next_page_token\" :\t\"a=\" ,\n\"total_records\": 12 } \n", "a="},
		{`{"next_page_token":"a=","results":[]}`, ""},
		{`{"results":[{"user":{"next_page_token":"x"}}]}`, ""},
		{`{"results":[{"user":{"next_page_token":"x"}}],"total_records":"1"}`, ""},
		{`{"next_page_token":"a\u003d"}`, ""},
		{`{"next_page_token":null}`, ""},
		{`{"next_page_token":""}`, ""},
		{`{"x":"\"next_page_token\":\"a\""}`, ""},
		{`{"x\"next_page_token":"a"}`, ""},
		{``, ""}, {`}`, ""}, {`"}`, ""}, {`{"`, ""},
	} {
		if got := nextToken([]byte(c.body)); got != c.want {
			t.Errorf("nextToken(%s) = %q, want %q", c.body, got, c.want)
		}
	}
}

// FuzzDecode holds the decoder against encoding/json, and the hint of the next
// token against the decoder.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"results":[{"code":"c","message":"m","user":{"uid":"u"}}],"total_records":"1","next_page_token":"t="}`))
	f.Add([]byte("{\"results\":[null,1,\"\xff\",{\"user\":{\"uid\":\"\\ud800\",\"uid\":3}}],\"total_records\":7}"))
	f.Add([]byte(`{"next_page_token":"a","results":[],"next_page_token":"b"}`))
	f.Add([]byte(`{"results":[1],"total_records":1,"next_page_token":"a","results":null,"total_records":null,"next_page_token":null}`))
	f.Add([]byte(`{"results":[{"code":"a","code":1,"user":{"uid":"u"},"us\u0065r":{"uid":"v","uid":"w"},"message":"m","message":"n"},{"user":{},"user":1}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		page, err := newDecoder(pipeline.Users).decode(body, "")
		var model struct {
			Results []json.RawMessage `json:"results"`
		}
		var names map[string]json.RawMessage
		if json.Valid(body) != (err == nil) {
			// encoding/json knows nothing of what a page's members are.
			if err == nil {
				t.Fatalf("decoded what is no JSON: %q", body)
			}
			return
		}
		if err != nil {
			return
		}
		events, err := newDecoder(pipeline.Events).decode(body, "")
		if err != nil || len(events.Results) != len(page.Results) {
			t.Fatalf("%q is a page of users, but not of events: %v", body, err)
		}
		for _, r := range events.Results {
			if r.Subject != nil && (!json.Valid(r.Subject) || r.Subject[0] != '{') || r.Shared != nil && !json.Valid(r.Shared) {
				t.Fatalf("the event %q, shared %q", r.Subject, r.Shared)
			}
		}
		if hint := nextToken(body); hint != "" && hint != page.Next && strings.ToValidUTF8(hint, "") == hint {
			t.Errorf("hint %q, but the next token of %q is %q", hint, body, page.Next)
		}
		if json.Unmarshal(body, &names) != nil || caseFolds(names) || json.Unmarshal(body, &model) != nil {
			return
		}
		if len(model.Results) != len(page.Results) {
			t.Fatalf("%d results, encoding/json finds %d in %q", len(page.Results), len(model.Results), body)
		}
		for i, r := range page.Results {
			if string(r.Raw) != string(model.Results[i]) {
				t.Errorf("result %d is %q, encoding/json says %q", i, r.Raw, model.Results[i])
			}
			members := object(r.Raw)
			user := members["user"]
			if object(user) == nil {
				user = nil
			}
			for _, m := range []struct {
				name      string
				got, want []byte
			}{
				{"code", r.Code, text(members["code"])}, {"message", r.Message, text(members["message"])},
				{"user", r.Subject, user}, {"uid", r.UID, text(object(user)["uid"])},
			} {
				if string(m.got) != string(m.want) {
					t.Errorf("the %s of result %q is %q, encoding/json says %q", m.name, r.Raw, m.got, m.want)
				}
			}
			if r.Object != (members != nil) {
				t.Errorf("result %q is an object: %v", r.Raw, r.Object)
			}
		}
		var next string
		json.Unmarshal(names["next_page_token"], &next)
		if page.Next != next {
			t.Errorf("the next token is %q, encoding/json says %q", page.Next, next)
		}
		total := int64(-1)
		if n, ok := new(big.Int).SetString(strings.Trim(string(names["total_records"]), `"`), 10); ok {
			total = n.Int64()
		}
		if page.TotalRecords != total {
			t.Errorf("the total is %d, of %s", page.TotalRecords, names["total_records"])
		}
	})
}

// object returns the members of a JSON object; nil of anything else.
func object(value []byte) (members map[string]json.RawMessage) {
	if len(value) == 0 || value[0] != '{' || json.Unmarshal(value, &members) != nil {
		return nil
	}
	return members
}

// text returns the literal of a JSON string; nil of anything else.
func text(value []byte) []byte {
	if len(value) == 0 || value[0] != '"' {
		return nil
	}
	return value
}

// caseFolds tells whether encoding/json takes another name for "results".
func caseFolds(names map[string]json.RawMessage) bool {
	for name := range names {
		if name != "results" && strings.EqualFold(name, "results") {
			return true
		}
	}
	return false
}

func BenchmarkDecode(b *testing.B) {
	api := simulator.New(simulator.Options{})
	body := api.Page(simulator.Conjured{ID: "bench", Failures: 1000, Plain: true})
	d := newDecoder(pipeline.Users)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.decode(body, ""); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzRetryAfter holds a header's reading against the grammar of RFC 9110: no
// pause is negative but where the header is neither seconds nor a date.
func FuzzRetryAfter(f *testing.F) {
	for _, value := range []string{"", "0", "120", " 7 ", "-1", "1.5", "99999999999", "Wed, 21 Oct 2015 07:28:00 GMT", "Tue, 24 Nov 2026 13:00:00 GMT", "soon"} {
		f.Add(value)
	}
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, value string) {
		pause := retryAfter(value, now)
		digits := strings.TrimSpace(value)
		isNumber := digits != "" && strings.Trim(digits, "0123456789") == ""
		date, dateErr := http.ParseTime(digits)
		switch {
		case isNumber:
			seconds, ok := new(big.Int).SetString(digits, 10)
			if !ok || seconds.Cmp(big.NewInt(1<<31-1)) <= 0 && pause != time.Duration(seconds.Int64())*time.Second {
				t.Fatalf("%q is %v", value, pause)
			}
		case dateErr == nil && date.After(now):
			if pause != date.Sub(now) {
				t.Fatalf("%q is %v, want %v", value, pause, date.Sub(now))
			}
		case dateErr == nil:
			if pause != 0 {
				t.Fatalf("%q, which is past, is %v", value, pause)
			}
		case pause >= 0:
			t.Fatalf("%q is %v", value, pause)
		}
	})
}

// FuzzAPIError sees to it that whatever a server says fits a line of a log.
func FuzzAPIError(f *testing.F) {
	f.Add([]byte(`{"message":"No such job","code":"not_found"}`))
	f.Add([]byte("{\"message\":\"a\\nb\\u0000\xff\",\"code\":7}"))
	f.Add([]byte("<html>502</html>"))
	f.Fuzz(func(t *testing.T, body []byte) {
		code, message := apiError(body)
		for _, text := range []string{code, message} {
			if len(text) > 510 || strings.ContainsAny(text, "\r\n") || !utf8.ValidString(text) {
				t.Fatalf("%q", text)
			}
		}
	})
}

package simulator_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"rebound/internal/simulator"
)

// call asks the API and decodes its answer.
func call(t *testing.T, api http.Handler, method, path, body string) (status int, answer map[string]any) {
	t.Helper()
	request := httptest.NewRequest(method, path, strings.NewReader(body))
	request.Header.Set("Authorization", "Basic key")
	recorder := httptest.NewRecorder()
	api.ServeHTTP(recorder, request)
	if recorder.Body.Len() > 0 {
		decoder := json.NewDecoder(recorder.Body)
		decoder.UseNumber() // some are too large for anything else
		if err := decoder.Decode(&answer); err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	return recorder.Code, answer
}

// readAll pages through a job's errors.
func readAll(t *testing.T, api http.Handler, jobID string) (results []any, pages int) {
	t.Helper()
	for token := ""; ; pages++ {
		status, page := call(t, api, "GET", "/v2/users/batch/"+url.PathEscape(jobID)+"/errors?page_token="+url.QueryEscape(token), "")
		if status != http.StatusOK {
			t.Fatalf("status %d: %v", status, page)
		}
		list, _ := page["results"].([]any)
		results = append(results, list...)
		if token, _ = page["next_page_token"].(string); token == "" {
			return results, pages + 1
		}
	}
}

func TestAnImportIsValidated(t *testing.T) {
	for _, c := range []struct{ name, user, code string }{
		{"a fine user", `{"uid":"u","email":"a@example.com","properties":{"a":{"b":1}}}`, ""},
		{"no uid", `{"email":"a@example.com"}`, "required_field"},
		{"an empty uid", `{"uid":""}`, "required_field"},
		{"a uid that is a number", `{"uid":7}`, "invalid_type"},
		{"a uid that is too long", `{"uid":"` + strings.Repeat("x", 257) + `"}`, "too_long"},
		{"a name that is too long", `{"uid":"u","display_name":"` + strings.Repeat("ü", 257) + `"}`, "too_long"},
		{"a name that is just short enough", `{"uid":"u","display_name":"` + strings.Repeat("ü", 256) + `"}`, ""},
		{"an address that is none", `{"uid":"u","email":"nobody"}`, "invalid_email"},
		{"properties that are a list", `{"uid":"u","properties":[]}`, "invalid_type"},
		{"a property's name that begins with a digit", `{"uid":"u","properties":{"1a":1}}`, "invalid_property_name"},
		{"a property that is too large", `{"uid":"u","properties":{"a":"` + strings.Repeat("x", 8200) + `"}}`, "property_too_large"},
		{"no object", `"u"`, "invalid_type"},
	} {
		t.Run(c.name, func(t *testing.T) {
			api := simulator.New(simulator.Options{})
			_, created := call(t, api, "POST", "/v2/users/batch", `{"requests":[`+c.user+`]}`)
			job := created["job"].(map[string]any)
			results, _ := readAll(t, api, job["id"].(string))
			switch {
			case c.code == "" && len(results) != 0:
				t.Errorf("it fails: %v", results)
			case c.code != "" && (len(results) != 1 || results[0].(map[string]any)["code"] != c.code):
				t.Errorf("failures are %v, want %s", results, c.code)
			}
			_, status := call(t, api, "GET", "/v2/users/batch/"+url.PathEscape(job["id"].(string)), "")
			want := map[bool]string{true: "COMPLETED", false: "FAILED"}[c.code == ""]
			if got := status["job"].(map[string]any)["status"]; got != want {
				t.Errorf("the job is %v, want %s", got, want)
			}
		})
	}
}

func TestTheSameIdempotencyKeyGetsTheSameJob(t *testing.T) {
	api := simulator.New(simulator.Options{})
	post := func(key string) string {
		request := httptest.NewRequest("POST", "/v2/users/batch", strings.NewReader(`{"requests":[{"uid":"u"}]}`))
		request.Header.Set("Authorization", "Basic key")
		request.Header.Set("Idempotency-Key", key)
		recorder := httptest.NewRecorder()
		api.ServeHTTP(recorder, request)
		var answer struct{ Job struct{ ID string } }
		if err := json.Unmarshal(recorder.Body.Bytes(), &answer); err != nil {
			t.Fatal(err)
		}
		return answer.Job.ID
	}
	if a, again, b := post("a"), post("a"), post("b"); a != again || a == b {
		t.Errorf("jobs %s, %s and %s", a, again, b)
	}
}

func TestAConjuredJobIsPagedToItsEnd(t *testing.T) {
	api := simulator.New(simulator.Options{Seed: 5})
	api.Conjure(simulator.Conjured{ID: "a/b+c=", Failures: 1234, PageSize: 100})
	results, pages := readAll(t, api, "a/b+c=")
	if len(results) != 1234 || pages != 13 {
		t.Errorf("%d results on %d pages", len(results), pages)
	}
}

func TestTokensAreTheJobsOwnAndExpire(t *testing.T) {
	api := simulator.New(simulator.Options{PageSize: 10})
	for _, id := range []string{"one", "two"} {
		api.Conjure(simulator.Conjured{ID: id, Failures: 100})
	}
	_, page := call(t, api, "GET", "/v2/users/batch/one/errors", "")
	token := url.QueryEscape(page["next_page_token"].(string))
	for _, c := range []struct {
		path string
		want int
	}{
		{"/v2/users/batch/one/errors?page_token=" + token, 200},
		{"/v2/users/batch/two/errors?page_token=" + token, 400},
		{"/v2/users/batch/one/errors?page_token=nonsense", 400},
		{"/v2/users/batch/three/errors", 404},
	} {
		if status, _ := call(t, api, "GET", c.path, ""); status != c.want {
			t.Errorf("%s answers %d, want %d", c.path, status, c.want)
		}
	}
	api.ExpireTokens()
	if status, answer := call(t, api, "GET", "/v2/users/batch/one/errors?page_token="+token, ""); status != 400 || answer["code"] != "invalid_page_token" {
		t.Errorf("an expired token is answered by %d %v", status, answer)
	}
}

func TestTheSameSeedMakesTheSameFailuresAndFaults(t *testing.T) {
	faults, err := simulator.ParseFaults("500=0.3,garbage=0.1,empty=0.2")
	if err != nil {
		t.Fatal(err)
	}
	world := func(seed uint64) string {
		api := simulator.New(simulator.Options{Seed: seed, Faults: faults, PageSize: 7})
		api.Conjure(simulator.Conjured{ID: "job", Failures: 50})
		var seen bytes.Buffer
		for i, result := range api.Failures(simulator.Users, "job") {
			fmt.Fprintf(&seen, "%d %.80s\n", i, result)
		}
		for range 20 {
			status, _ := call(t, api, "GET", "/v2/users/batch/job/errors", "")
			fmt.Fprintln(&seen, status)
		}
		return seen.String()
	}
	once, again, other := world(1), world(1), world(2)
	if once != again || once == other {
		t.Error("a seed does not decide what happens")
	}
}

func TestFaultsAreParsed(t *testing.T) {
	for _, c := range []struct{ list, want string }{
		{"", ""},
		{"429=0.1, cut=1", "429=0.1,cut=1"},
		{"all=0.5,garbage=0", "429=0.5,500=0.5,503=0.5,cut=0.5,empty=0.5,garbage=0,html=0.5,latency=0.5,repeated=0.5,slow-body=0.5,truncated=0.5"},
	} {
		faults, err := simulator.ParseFaults(c.list)
		if err != nil || faults.String() != c.want {
			t.Errorf("%q is %q, error %v", c.list, faults, err)
		}
	}
	for _, list := range []string{"fire=1", "429", "429=2", "429=x", "429=-1"} {
		if _, err := simulator.ParseFaults(list); err == nil {
			t.Errorf("%q is taken", list)
		}
	}
}

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"rebound/internal/simulator"
)

// canaries are what must not be seen: the secrets, and what users have.
var (
	canarySecrets = map[string]string{
		"FULLSTORY_API_KEY": "canary-key-Zm9vYmFy", "HTTP_TOKEN": "canary-token-9f8e7d", "FIELDS_HASH_KEY": "canary-hash-key-0123456789",
	}
	canaryValues = []string{
		"uid-canary-7731", "Canary Ada Lovelace", "ada.canary@example.com", "canary-phone-+49-170-1234567", "canary-street-221b", "canary-city-Xanadu",
		"canary-zip-90210", "canary-iban-DE02120300000000202051", "canary-passport-C01X00T47", "canary-ssn-078-05-1120", "canary-ip-198.51.100.77",
		"canary-employer-Initech", "canary-salary-123456", "canary-birthday-1815-12-10", "canary-religion-x", "canary-diagnosis-y", "canary-partner-Babbage",
		"canary-plate-B-AB-123", "canary-geo-52.5200,13.4050", "canary-note-\u00fcn\u00efc\u00f6de",
	}
)

// postCanaries imports users that all fail, each with every canary, and returns
// the job's id.
func postCanaries(t *testing.T, w *world, users int) string {
	t.Helper()
	var requests []map[string]any
	for i := range users {
		properties := map[string]any{"1 no name": i}
		for j, value := range canaryValues[3:] {
			properties[fmt.Sprintf("p%d", j)] = map[string]any{"value": value, "list": []any{value, i}}
		}
		requests = append(requests, map[string]any{"uid": canaryValues[0], "display_name": canaryValues[1], "email": canaryValues[2], "properties": properties})
	}
	body, _ := json.Marshal(map[string]any{"requests": requests})
	request, _ := http.NewRequest("POST", w.env["FULLSTORY_BASE_URL"]+"/v2/users/batch", bytes.NewReader(body))
	request.Header.Set("Authorization", "Basic "+w.env["FULLSTORY_API_KEY"])
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct{ Job struct{ ID string } }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.Job.ID == "" {
		t.Fatal(response.Status, err)
	}
	return answer.Job.ID
}

// mustNotSing fails the test where a text has a canary, in any usual guise.
func mustNotSing(t *testing.T, where, text string) {
	t.Helper()
	for _, canary := range append([]string{canarySecrets["FULLSTORY_API_KEY"], canarySecrets["HTTP_TOKEN"], canarySecrets["FIELDS_HASH_KEY"]}, canaryValues...) {
		ascii := strings.Trim(fmt.Sprintf("%+q", canary), `"`)
		for guise, shown := range map[string]string{
			"as it is": canary, "escaped": ascii, "in base64": base64.StdEncoding.EncodeToString([]byte(canary)),
			"in hexadecimal": fmt.Sprintf("%x", canary),
		} {
			if at := strings.Index(text, shown); at >= 0 {
				t.Errorf("%s shows %q, %s: …%s…", where, canary, guise, text[max(at-100, 0):min(at+len(shown)+50, len(text))])
			}
		}
	}
}

// Whatever happens, what rebound says holds neither a secret nor anything of a
// user: at debug level, under faults, killed, and crashed with all its stacks.
func TestNoSecretAndNoUserIsEverShown(t *testing.T) {
	faults, err := simulator.ParseFaults("all=0.04")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, simulator.Options{Faults: faults, PageSize: 20, APIKey: canarySecrets["FULLSTORY_API_KEY"]})
	for name, value := range canarySecrets {
		w.env[name] = value
	}
	w.env["LOG_LEVEL"], w.env["FIELDS_HASH"] = "debug", "/properties/p1/value"
	w.env["GOTRACEBACK"] = "crash"
	job := postCanaries(t, w, 400)

	var spans syncBuffer
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(&spans, r.Body) }))
	defer collector.Close()
	traces := "OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL

	for _, c := range []struct{ arguments, changes string }{
		{"check", ""}, {"check --serve", ""}, {"check JOB", ""}, {"check", "FULLSTORY_API_KEY=canary-key-wrong"},
		{"run nobody=", ""},
		{"run JOB", "KAFKA_BROKERS=127.0.0.1:1 KAFKA_RETRY_TIMEOUT=300ms"},
		{"run JOB", "FULLSTORY_BASE_URL=http://127.0.0.1:1 FULLSTORY_RETRY_TIMEOUT=300ms"},
		{"run JOB", "FULLSTORY_REQUEST_TIMEOUT=1ms FULLSTORY_RETRY_TIMEOUT=300ms"},
		{"run JOB", "HTTP_ADDR=x FULLSTORY_RATE_LIMIT=0 KAFKA_TLS=maybe"},
		{"run JOB", traces}, {"run JOB", "LOG_FORMAT=text"}, {"run --replay JOB", traces},
		{"verify JOB", ""}, {"verify JOB", "FIELDS_DROP=/email"}, {"jobs", ""}, {"jobs --json", ""},
	} {
		arguments := strings.Fields(strings.ReplaceAll(c.arguments, "JOB", job))
		r := w.run(arguments, strings.Fields(c.changes)...)
		mustNotSing(t, "rebound "+c.arguments+", with "+c.changes, r.stdout+r.stderr)
	}

	i := w.serve(traces)
	w.order("canary-zip-90210 ada.canary@example.com", `{"job_id":"x=","email":"ada.canary@example.com"}`, `{"canary-ssn-078-05-1120`)
	authorized := "Bearer " + canarySecrets["HTTP_TOKEN"]
	i.call("POST", "/jobs", `{"job_ids":["`+job+`"],"replay":true}`, "Authorization", authorized)
	i.call("POST", "/jobs", `{"job_ids":["`+job+`"]}`, "Authorization", "Bearer canary-token-wrong")
	i.awaitState(30*time.Second, job, 0, "running")
	for range 20 {
		for _, path := range []string{"/", "/jobs", "/jobs/" + job, "/metrics", "/readyz", "/debug/pprof/heap"} {
			_, body, _ := i.call("GET", path, "")
			mustNotSing(t, "GET "+path, body)
		}
	}
	i.command.Process.Signal(syscall.SIGQUIT) // the stacks of everything, as in a panic
	<-i.ended
	i.ended <- nil
	if !strings.Contains(i.log.String(), "goroutine ") {
		t.Error("there are no stacks in the log")
	}
	mustNotSing(t, "the log of an instance, with its stacks,", i.log.String())
	w.run([]string{"run", "--replay", job}, traces)
	if spans.String() == "" {
		t.Error("no spans came")
	}
	mustNotSing(t, "the traces", spans.String())
}

// panicking builds a rebound that has a mistake in it: where it makes the message
// of the failure at the position, it reaches beyond a slice.
func panicking(t *testing.T, position int) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds a program of its own")
	}
	directory := t.TempDir()
	original, err := filepath.Abs("../../pipeline/message.go")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	const made = "\tb.Messages = append(b.Messages, message)\n"
	if strings.Count(string(text), made) != 1 {
		t.Fatalf("%s is no longer written as this test expects", original)
	}
	mistake := fmt.Sprintf("\tif index == %d {\n\t\t_ = value[len(value)+len(key):][0]\n\t}\n", position)
	mistaken, overlay, program := filepath.Join(directory, "message.go"), filepath.Join(directory, "overlay.json"), filepath.Join(directory, "rebound")
	replace, _ := json.Marshal(map[string]any{"Replace": map[string]string{original: mistaken}})
	os.WriteFile(mistaken, []byte(strings.Replace(string(text), made, mistake+made, 1)), 0o600)
	os.WriteFile(overlay, replace, 0o600)
	if output, err := exec.Command("go", "build", "-overlay", overlay, "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return program
}

// A mistake of ours that panics with a user in hand shows nothing of the user
// either, and costs nothing: the next run goes on where the last commit is.
func TestAPanicShowsNoUserAndLosesNone(t *testing.T) {
	mistaken := panicking(t, 250)
	for _, how := range []string{"run", "serve"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, simulator.Options{PageSize: 20, APIKey: canarySecrets["FULLSTORY_API_KEY"]})
			for name, value := range canarySecrets {
				w.env[name] = value
			}
			w.env["LOG_LEVEL"], w.env["GOTRACEBACK"] = "debug", "crash"
			job := postCanaries(t, w, 400)

			w.program = mistaken
			var log string
			if how == "run" {
				r := w.run([]string{"run", job})
				log = r.stdout + r.stderr
			} else {
				i := w.serve()
				i.call("POST", "/jobs", `{"job_ids":["`+job+`"]}`, "Authorization", "Bearer "+canarySecrets["HTTP_TOKEN"])
				await(t, 30*time.Second, "the panic\n"+i.log.String(), func() bool { return strings.Contains(i.log.String(), "panic: ") })
				<-i.ended
				i.ended <- nil
				log = i.log.String()
			}
			if !strings.Contains(log, "panic: runtime error: slice bounds out of range") || !strings.Contains(log, "pipeline.(*Batch).addFailure") {
				t.Fatalf("it did not panic where it should:\n%s", log)
			}
			mustNotSing(t, "the log of a panic", log)

			w.program = ""
			w.run([]string{"run", job}).must(t, 0)
			w.run([]string{"verify", job}).must(t, 0)
			if n := len(w.consume(w.env["KAFKA_TOPIC"])); n != 400 {
				t.Errorf("%d messages, want 400", n)
			}
		})
	}
}

// A crash leaves no file with the process's memory behind.
func TestACrashWritesNoCore(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	i := w.serve()
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", i.command.Process.Pid))
	if err != nil {
		t.Skip("this system has no /proc")
	}
	for _, line := range strings.Split(string(limits), "\n") {
		if fields := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && (fields[4] != "0" || fields[5] != "0") {
			t.Error(line)
		}
	}
}

// With the fields dropped or hashed, nothing of a user is in Kafka either.
func TestHiddenFieldsAreNowhere(t *testing.T) {
	w := newWorld(t, simulator.Options{PageSize: 100, APIKey: canarySecrets["FULLSTORY_API_KEY"]})
	key := filepath.Join(t.TempDir(), "key")
	os.WriteFile(key, []byte(canarySecrets["FIELDS_HASH_KEY"]+"\n"), 0o600)
	w.env["FULLSTORY_API_KEY"] = canarySecrets["FULLSTORY_API_KEY"]
	w.env["FIELDS_DROP"], w.env["FIELDS_HASH"] = "/display_name,/properties/*/value,/properties/*/list/*", "/uid,/email"
	w.env["FIELDS_HASH_KEY_FILE"] = key
	job := postCanaries(t, w, 300)
	w.run([]string{"run", job}).must(t, 0)
	w.run([]string{"verify", job}).must(t, 0)
	n := 0
	for _, topic := range []string{"", ".dead-letter", ".progress"} {
		for _, m := range w.consume(w.env["KAFKA_TOPIC"] + topic) {
			n++
			mustNotSing(t, "a message", m.key+m.value+m.headers)
			if topic == "" && !strings.HasPrefix(m.key, "hmac-sha256:") {
				t.Fatalf("the key is %q", m.key)
			}
		}
	}
	if n < 300 {
		t.Errorf("%d messages", n)
	}
	// Another key, another hash: verify sees that it is not the same.
	if r := w.run([]string{"verify", job}, "FIELDS_HASH_KEY_FILE=", "FIELDS_HASH_KEY=another-key-of-some-length").must(t, 1); !strings.Contains(r.stdout, "different   300") && !strings.Contains(r.stdout, "missing     300") {
		t.Errorf("verify says\n%s", r.stdout)
	}
}

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/twmb/franz-go/pkg/kgo"

	"rebound/internal/simulator"
)

// schema is a published one, of docs/schemas.
func schema(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	s, err := compiler.Compile("../../docs/schemas/" + name + ".schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mustBeValid fails the test where a JSON text is not as the schema has it.
func mustBeValid(t *testing.T, s *jsonschema.Schema, text string) {
	t.Helper()
	// Its numbers may be more than a double holds.
	decoded, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%.200s: %v", text, err)
	}
	if err := s.Validate(decoded); err != nil {
		t.Fatalf("%.200s: %v", text, err)
	}
}

// headersAsJSON turns what consume made of headers into an object.
func headersAsJSON(headers string) string {
	members := make(map[string]string)
	for _, h := range strings.Split(strings.TrimSuffix(headers, "; "), "; ") {
		name, value, _ := strings.Cut(h, ": ")
		members[name] = value
	}
	text, _ := json.Marshal(members)
	return string(text)
}

// What rebound writes is what the published schemas say.
func TestMessagesAreAsTheSchemasSay(t *testing.T) {
	n := int64(10_500) // ten thousand and some that are no users
	if testing.Short() {
		n = 1000
	}
	faults, err := simulator.ParseFaults("garbage=0.005")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, simulator.Options{Faults: faults})
	w.conjure("users/+=", n, 500)
	w.api.Conjure(simulator.Conjured{Kind: simulator.Events, ID: "events/+=", Failures: n, PageSize: 500})
	w.conjure("short=", 10, 10)
	w.api.Conjure(simulator.Conjured{ID: "less=", Failures: 5, Claimed: 7})
	w.run([]string{"run", "users/+=", "short="}, "KAFKA_CLOUDEVENTS=true").must(t, 0)
	w.run([]string{"run", "--replay", "short="}).must(t, 0)
	w.run([]string{"run", "--kind", "events", "events/+="}).must(t, 0)
	w.run([]string{"run", "less=", "nobody="}).must(t, 1)

	// As many dead letters, and as many progress records where commits are cheap.
	null := serveBody(t, func(w http.ResponseWriter) {
		fmt.Fprintf(w, `{"results":[null%s],"total_records":%d}`, strings.Repeat(",null", int(n)-1), n)
	})
	w.run([]string{"run", "null="}, "FULLSTORY_BASE_URL="+null).must(t, 0)
	commits := n
	if w.cluster == nil {
		commits = 200
	}
	w.conjure("commits=", commits, 1)
	w.run([]string{"run", "commits="}, "COMMIT_INTERVAL=0s").must(t, 0)
	i := w.serve()
	many := make([]string, n)
	for i := range many {
		many[i] = fmt.Sprintf("ordered/%d+=", i)
	}
	i.submit(false, many...)
	i.kill() // they need not be carried out
	w.env["KAFKA_JOBS_TOPIC"] = w.env["KAFKA_TOPIC"] + ".few"
	i = w.serve("KAFKA_GROUP_ID=" + w.env["KAFKA_JOBS_TOPIC"])
	i.submit(true, "short=")
	i.submit(false, "users/+=")
	i.call("POST", "/jobs", `{"job_ids":["events/+="],"kind":"events"}`)
	i.awaitState(30*time.Second, "short=", 3, "done")
	w.order("{}")
	await(t, 30*time.Second, "the malformed order in the dead letters", func() bool {
		return strings.Contains(fmt.Sprint(w.consume(w.env["KAFKA_TOPIC"]+".dead-letter")), "malformed_job")
	})
	i.terminate()

	topic := w.env["KAFKA_TOPIC"]
	for _, c := range []struct {
		topic, value, headers string
		least                 int64
	}{
		{topic, "failed-user.v1", "failed-user.v1.headers", n * 95 / 100},
		{w.events(), "failed-event.v1", "failed-event.v1.headers", n * 95 / 100},
		{topic + ".dead-letter", "", "dead-letter.v1.headers", n},
		{w.events() + ".dead-letter", "", "dead-letter.v1.headers", 1},
		{topic + ".progress", "progress.v1", "", commits * 95 / 100},
		{w.events() + ".progress", "progress.v1", "", 1},
		{topic + ".jobs", "order.v1", "", n},
		{topic + ".few", "order.v1", "", 3},
	} {
		t.Run(c.topic[strings.LastIndexByte(topic, '-')+2:], func(t *testing.T) {
			var value, headers *jsonschema.Schema
			if c.value != "" {
				value = schema(t, c.value)
			}
			if c.headers != "" {
				headers = schema(t, c.headers)
			}
			messages := w.consume(c.topic)
			if int64(len(messages)) < c.least {
				t.Fatalf("there are %d messages", len(messages))
			}
			for _, m := range messages {
				if value != nil && m.value != "{}" {
					mustBeValid(t, value, m.value)
				}
				if headers != nil {
					mustBeValid(t, headers, headersAsJSON(m.headers))
				}
			}
			t.Logf("%d messages", len(messages))
		})
	}
}

// firstRelease holds what the first release wrote: messages as --sink stdout
// prints them, and progress records.
func firstRelease(t *testing.T, file string) (lines []string) {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "first-release", file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		lines = append(lines, scanner.Text())
	}
	return lines
}

func TestMessagesOfTheFirstReleaseStayReadable(t *testing.T) {
	value, headers, dead := schema(t, "failed-user.v1"), schema(t, "failed-user.v1.headers"), schema(t, "dead-letter.v1.headers")
	for _, line := range firstRelease(t, "messages.jsonl") {
		var m struct {
			Topic, Value string
			Headers      json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(m.Topic, ".dead-letter") {
			mustBeValid(t, dead, string(m.Headers))
			continue
		}
		mustBeValid(t, value, m.Value)
		mustBeValid(t, headers, string(m.Headers))
	}
}

// A job that the first release left half done, and one that it has done, are
// taken up as if it had been this one.
func TestProgressOfTheFirstReleaseIsGoneOnFrom(t *testing.T) {
	w := newWorld(t, simulator.Options{Seed: 1})
	w.conjure("half=", 100, 10)
	w.conjure("done=", 40, 10)
	w.conjure("else=", 10, 10)
	w.run([]string{"run", "else="}).must(t, 0) // makes the topics
	progress := schema(t, "progress.v1")
	client := w.client(kgo.DefaultProduceTopic(w.env["KAFKA_TOPIC"] + ".progress"))
	for _, line := range firstRelease(t, "progress.jsonl") {
		mustBeValid(t, progress, line)
		var p struct {
			JobID string `json:"job_id"`
		}
		json.Unmarshal([]byte(line), &p)
		if err := client.ProduceSync(t.Context(), &kgo.Record{Key: []byte(p.JobID), Value: []byte(line)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	r := w.run([]string{"run", "half=", "done="}).must(t, 0)
	if !strings.Contains(r.stdout, "done=  skipped  1    38         2              40") || !strings.Contains(r.stdout, "half=  done     1    99         1              100") {
		t.Errorf("the summary is\n%s", r.stdout)
	}
	at := 0
	for _, m := range w.consume(w.env["KAFKA_TOPIC"]) {
		if strings.HasPrefix(m.headers, "job: half=") {
			at++
		}
	}
	if at != 70 {
		t.Errorf("%d messages of the job that was at position 30 of 100", at)
	}
}

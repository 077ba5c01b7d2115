package main

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"rebound/internal/simulator"
)

// serveBody answers every request with a body.
func serveBody(t *testing.T, write func(w http.ResponseWriter)) string {
	return serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { write(w) }))
}

// Whatever a result is, it and its neighbours are published or dead-lettered.
func TestHostileResultsStopNothing(t *testing.T) {
	deep := func(levels int) string {
		return strings.Repeat(`{"a":[`, levels/2) + "1" + strings.Repeat("]}", levels/2)
	}
	large := strings.Repeat("lorem ipsum ", 4<<20/12)
	long := strings.Repeat("9", 10_000)
	for _, c := range []struct{ name, user, published, reason string }{
		{"a number of 10,000 digits", `{"n":` + long + `,"e":1e999999}`, `{"n":` + long + `,"e":1e999999}`, ""},
		{"NUL, bells and lone surrogates in escapes", `{"s":"\u0000\u0007\ud800"}`, `{"s":"\u0000\u0007\ud800"}`, ""},
		{"invalid UTF-8, in names too", "{\"\xff\":\"\xc3\x28\xed\xa0\x80\"}", "{\"\uFFFD\":\"\uFFFD(\uFFFD\uFFFD\uFFFD\"}", ""},
		{"names that stand twice, and empty ones", `{"":1,"":2,"uid":"a","uid":"b"}`, `{"":1,"":2,"uid":"a","uid":"b"}`, ""},
		{"nested 9,000 deep", `{"d":` + deep(9_000) + `}`, `{"d":` + deep(9_000) + `}`, ""},
		{"nested 100,000 deep", `{"d":` + deep(100_000) + `}`, "", "too_deep"},
		{"braces in strings", `{"s":"]}\"{[","t":"\\"}`, `{"s":"]}\"{[","t":"\\"}`, ""},
		{"a user of 4 MB", `{"s":"` + large + `"}`, "", "too_large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			hostile := `{"code":"x","message":"m","user":` + c.user + `}`
			page := `{"results":[{"code":"a","user":{"uid":"before"}},` + hostile + `,{"code":"b","user":{"uid":"after"}}],"total_records":"3"}`
			w := newWorld(t, simulator.Options{})
			w.env["FULLSTORY_BASE_URL"] = serveBody(t, func(w http.ResponseWriter) { io.WriteString(w, page) })
			w.run([]string{"run", "job="}).must(t, 0)
			w.run([]string{"verify", "job="}).must(t, 0)
			published := w.consume(w.env["KAFKA_TOPIC"])
			dead := joined(t, w.consume(w.env["KAFKA_TOPIC"]+".dead-letter"))
			all := fmt.Sprint(published)
			if !strings.Contains(all, `{"uid":"before"}`) || !strings.Contains(all, `{"uid":"after"}`) {
				t.Errorf("its neighbours are not there: %.300s", all)
			}
			if c.reason == "" {
				if len(published) != 3 || !strings.Contains(all, `"user":`+c.published+"}") {
					t.Errorf("published is %.600q", all)
				}
				return
			}
			if len(dead) != 1 || dead[0].value != hostile || !strings.Contains(dead[0].headers, "reason: "+c.reason) {
				t.Errorf("%d dead letters, %.300v", len(dead), dead)
			}
		})
	}
}

// A body that is small on the wire and endless once it is decompressed is given
// up at 512 MiB, with a reason. The buffer doubles on the way there: so it takes
// up to three times that for a moment.
func TestAZipBombIsGivenUp(t *testing.T) {
	if testing.Short() {
		t.Skip("decompresses half a gigabyte")
	}
	w := newWorld(t, simulator.Options{})
	w.env["FULLSTORY_BASE_URL"] = serveBody(t, func(w http.ResponseWriter) {
		w.Header().Set("Content-Encoding", "gzip")
		zipped := gzip.NewWriter(w)
		io.WriteString(zipped, `{"results":[`)
		zeros := make([]byte, 1<<20)
		for range 4096 {
			if _, err := zipped.Write(zeros); err != nil {
				return
			}
		}
	})
	r := w.run([]string{"run", "job="}, "FULLSTORY_RETRY_TIMEOUT=1s").must(t, 1)
	if !strings.Contains(r.stderr, "larger than 512 MiB") {
		t.Errorf("it says\n%s", r.stderr)
	}
	if r.peakRSS > 1536<<20 {
		t.Errorf("%d MiB at the peak", r.peakRSS>>20)
	}
	t.Logf("%d MiB at the peak", r.peakRSS>>20)
}

// How large a message may be is the topic's own setting, not Kafka's default: what
// is larger comes in parts that the dead letters' topic takes.
func TestMessagesFitTheTopicsThatThereAre(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	topic := w.env["KAFKA_TOPIC"]
	admin := kadm.NewClient(w.client())
	for name, size := range map[string]string{topic: "20000", topic + ".dead-letter": "10000"} {
		created, err := admin.CreateTopics(t.Context(), 3, -1, map[string]*string{"max.message.bytes": &size}, name)
		if err != nil || created.Error() != nil {
			t.Fatal(err, created.Error())
		}
	}
	user := func(size int) string {
		return `{"message":"m","code":"c","user":{"uid":"u` + fmt.Sprint(size) + `","s":"` + strings.Repeat("x", size) + `"}}`
	}
	page := `{"results":[` + user(100) + "," + user(15_000) + "," + user(50_000) + `],"total_records":"3"}`
	w.env["FULLSTORY_BASE_URL"] = serveBody(t, func(w http.ResponseWriter) { io.WriteString(w, page) })
	w.run([]string{"run", "job="}, "KAFKA_COMPRESSION=none").must(t, 0)
	w.run([]string{"verify", "job="}).must(t, 0)
	if published := w.consume(topic); len(published) != 2 {
		t.Errorf("%d messages are published", len(published))
	}
	parts := w.consume(topic + ".dead-letter")
	for _, part := range parts {
		if len(part.value) > 10_000 {
			t.Errorf("a part has %d bytes", len(part.value))
		}
	}
	if dead := joined(t, parts); len(parts) < 5 || len(dead) != 1 || dead[0].value != user(50_000) {
		t.Errorf("%d parts, %d dead letters", len(parts), len(dead))
	}
}

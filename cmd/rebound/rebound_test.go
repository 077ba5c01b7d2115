package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"rebound/internal/memory"
	"rebound/internal/simulator"
)

// The tests run the program itself, as its own process: the test binary is
// rebound where this variable is set.
const asRebound = "REBOUND_TEST_AS_REBOUND"

func TestMain(m *testing.M) {
	if os.Getenv(asRebound) != "" {
		main()
		return
	}
	flag.Parse()
	// Tests that run in parallel wait most of the time.
	flag.Set("test.parallel", "8")
	os.Exit(m.Run())
}

// world is what a test runs rebound against: a cluster, which is the one that
// KAFKA_BROKERS names or an embedded one, topics of its own, and a simulated
// FullStory API.
type world struct {
	t       *testing.T
	api     *simulator.Simulator
	cluster *kfake.Cluster // nil where it is not embedded
	env     map[string]string
	program string // rebound's file; the test's own where it is empty
}

var worlds atomic.Int64

func newWorld(t *testing.T, options simulator.Options, kafka ...kfake.Opt) *world {
	t.Helper()
	w := &world{t: t, api: simulator.New(options)}
	url := serveHandler(t, w.api)
	brokers := os.Getenv("KAFKA_BROKERS")
	if brokers == "" || len(kafka) > 0 {
		w.cluster = embedded(t, kafka...)
		brokers = strings.Join(w.cluster.ListenAddrs(), ",")
	}
	w.env = map[string]string{
		asRebound:              "1",
		"FULLSTORY_API_KEY":    "key",
		"FULLSTORY_BASE_URL":   url,
		"FULLSTORY_RATE_LIMIT": "10000",
		"FULLSTORY_RATE_BURST": "10000",
		"KAFKA_BROKERS":        brokers,
		"KAFKA_TOPIC":          fmt.Sprintf("test-%d-%d", time.Now().UnixNano(), worlds.Add(1)),
		"COMMIT_INTERVAL":      "20ms",
	}
	return w
}

// serveHandler returns the URL of a server.
func serveHandler(t *testing.T, handler http.Handler) string {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

func embedded(t *testing.T, options ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(3)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

// conjure adds a job to the API.
func (w *world) conjure(id string, failures int64, pageSize int) {
	w.api.Conjure(simulator.Conjured{ID: id, Failures: failures, PageSize: pageSize})
}

// result is what a run of rebound left behind.
type result struct {
	status         int
	stdout, stderr string
	peakRSS        int64 // bytes
}

// command returns rebound with these arguments, in the world's environment.
// Changes are VARIABLE=value; an empty value unsets.
func (w *world) command(ctx context.Context, arguments []string, changes ...string) *exec.Cmd {
	env := make(map[string]string)
	for name, value := range w.env {
		env[name] = value
	}
	for _, change := range changes {
		name, value, _ := strings.Cut(change, "=")
		env[name] = value
	}
	command := exec.CommandContext(ctx, cmp.Or(w.program, os.Args[0]), arguments...)
	command.Env = []string{"HOME=" + w.t.TempDir(), "PATH=" + os.Getenv("PATH")}
	for name, value := range env {
		if value != "" {
			command.Env = append(command.Env, name+"="+value)
		}
	}
	return command
}

// run runs rebound to its end.
func (w *world) run(arguments []string, changes ...string) result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
	defer cancel()
	command := w.command(ctx, arguments, changes...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Start(); err != nil {
		w.t.Fatal(err)
	}
	peak := memory.Peak(command.Process.Pid)
	r := finish(w.t, command, command.Wait(), &stdout, &stderr)
	r.peakRSS = <-peak
	return r
}

func finish(t *testing.T, command *exec.Cmd, err error, stdout, stderr *bytes.Buffer) result {
	t.Helper()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return result{status: command.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
}

// must fails the test where rebound did not end with the status.
func (r result) must(t *testing.T, status int) result {
	t.Helper()
	if r.status != status {
		t.Fatalf("exit status %d, want %d\nstdout:\n%s\nstderr:\n%s", r.status, status, r.stdout, r.stderr)
	}
	return r
}

// client returns a client of the brokers that shares nothing with rebound.
func (w *world) client(options ...kgo.Opt) *kgo.Client {
	w.t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(strings.Split(w.env["KAFKA_BROKERS"], ",")...)}, options...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(client.Close)
	return client
}

// message is a message as a consumer gets it.
type message struct {
	topic, key, value, headers string
	index                      int64
}

// consume reads a topic to its end with a consumer that shares nothing with
// rebound, as read_committed.
func (w *world) consume(topic string) []message {
	w.t.Helper()
	client := w.client(kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ends := w.committedEnds(client, topic)
	var messages []message
	positions := make(map[int32]int64)
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	for !reached(positions, ends) {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			w.t.Fatalf("consume %s: %v", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			positions[r.Partition] = r.Offset + 1
			if r.Attrs.IsControl() {
				return
			}
			m := message{topic: topic, key: string(r.Key), value: string(r.Value), index: -1}
			for _, h := range r.Headers {
				m.headers += h.Key + ": " + string(h.Value) + "; "
				if h.Key == "id" {
					_, index, _ := strings.Cut(string(h.Value), "/")
					m.index, _ = strconv.ParseInt(index[strings.LastIndex(index, "/")+1:], 10, 64)
				}
			}
			messages = append(messages, m)
		})
	}
	return messages
}

// truth returns what the simulator holds of a job of users, made into messages by
// encoding/json, which shares no code with rebound.
func (w *world) truth(id string, failures int64, run int) (users, deadLetters []message) {
	w.t.Helper()
	return w.truthOf(simulator.Users, id, failures, run)
}

func (w *world) truthOf(kind simulator.Kind, id string, failures int64, run int) (failed, deadLetters []message) {
	w.t.Helper()
	subject := strings.TrimSuffix(string(kind), "s")
	for i, raw := range w.api.Failures(kind, id) {
		var r struct {
			Code, Message       any
			User, Event, Shared json.RawMessage
		}
		var request json.RawMessage
		if err := json.Unmarshal(raw, &r); err == nil {
			if request = r.User; kind == simulator.Events {
				request = r.Event
			}
		}
		head := fmt.Sprintf("job: %s; ", id)
		at := fmt.Sprintf("id: %s/%d; run: %d; ", id, i, run)
		reason := ""
		switch {
		case raw[0] != '{':
			reason = "not_an_object"
		case len(request) == 0 || request[0] != '{':
			reason = "no_" + subject
		case len(raw) > 1<<20:
			reason = "too_large"
		}
		if reason != "" {
			deadLetters = append(deadLetters, message{key: id, value: string(raw), headers: head + at + "reason: " + reason + "; ", index: i})
			continue
		}
		code, message_ := modelCode(r.Code), modelMessage(r.Message)
		var value bytes.Buffer
		fmt.Fprintf(&value, `{"job_id":%s,"index":%d,"code":%q,"message":%s,%q:%s`, quote(id), i, code, quote(message_), subject, w.compact(request))
		uidAt := regexp.MustCompile(`"uid":"([^"\\]+)"`)
		if kind == simulator.Events {
			uidAt = regexp.MustCompile(`"user":\{"uid":"([^"\\]+)"`)
			if r.Shared != nil {
				fmt.Fprintf(&value, `,"shared":%s`, w.compact(r.Shared))
			}
		}
		value.WriteByte('}')
		key := id
		var uid struct{ UID any }
		if err := json.Unmarshal(request, &uid); err == nil && kind == simulator.Users {
			if text, ok := uid.UID.(string); ok && text != "" {
				key = text
			}
		} else if m := uidAt.FindSubmatch(request); m != nil {
			key = string(m[1]) // a number in the request is too much for encoding/json
		}
		failed = append(failed, message{key: key, value: value.String(), index: i,
			headers: head + "code: " + code + "; " + at + "content-type: application/json; schema: rebound.failed-" + subject + ".v1; "})
	}
	if int64(len(failed)+len(deadLetters)) != failures {
		w.t.Fatalf("the simulator has %d failures, not %d", len(failed)+len(deadLetters), failures)
	}
	return failed, deadLetters
}

// compact returns JSON as it stands in a message.
func (w *world) compact(value []byte) []byte {
	w.t.Helper()
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(strings.ToValidUTF8(perByte(value), "\uFFFD"))); err != nil {
		w.t.Fatal(err)
	}
	return compact.Bytes()
}

// perByte parts neighbouring invalid bytes, of which each becomes a U+FFFD.
func perByte(text []byte) string {
	var parted strings.Builder
	for _, r := range string(text) {
		parted.WriteRune(r)
	}
	return parted.String()
}

func quote(text string) string {
	var quoted bytes.Buffer
	encoder := json.NewEncoder(&quoted)
	encoder.SetEscapeHTML(false)
	encoder.Encode(text)
	// encoding/json escapes these two for JavaScript's sake.
	return strings.NewReplacer(`\u2028`, "\u2028", `\u2029`, "\u2029").Replace(strings.TrimSpace(quoted.String()))
}

var modelCodes = map[string]string{
	"Property Too Large": "property_too_large", "TypeConflict": "type_conflict", "user-deleted": "user_deleted", "Twice Given": "twice_given",
}

func modelCode(code any) string {
	text, ok := code.(string)
	if !ok {
		return "unknown"
	}
	if known := modelCodes[text]; known != "" {
		return known
	}
	return text
}

func modelMessage(text any) string {
	message, _ := text.(string)
	return strings.Join(strings.Fields(message), " ")
}

// mustMatch fails the test where what was consumed is not what is wanted: each
// message once, and those of one key in order.
func mustMatch(t *testing.T, what string, got, want []message) {
	t.Helper()
	last := make(map[string]int64)
	for i, m := range got {
		if before, ok := last[m.key]; ok && before > m.index {
			t.Errorf("%s: key %q has %d after %d", what, m.key, m.index, before)
		}
		last[m.key] = m.index
		got[i].topic = ""
	}
	byIndex := func(a, b message) int { return int(a.index - b.index) }
	slices.SortStableFunc(got, byIndex)
	for i := 0; i < min(len(got), len(want)); i++ {
		if got[i] != want[i] {
			t.Fatalf("%s: %d messages, want %d; the first that differs is\n%.300q, want\n%.300q", what, len(got), len(want), fmt.Sprintf("%+v", got[i]), fmt.Sprintf("%+v", want[i]))
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d messages, want %d", what, len(got), len(want))
	}
}

// joined joins the parts of dead letters.
func joined(t *testing.T, messages []message) []message {
	t.Helper()
	part := regexp.MustCompile(`part: (\d+); parts: \d+; $`)
	var whole []message
	for _, m := range messages {
		found := part.FindStringSubmatch(m.headers)
		m.headers = part.ReplaceAllString(m.headers, "")
		if found != nil && found[1] != "1" {
			whole[len(whole)-1].value += m.value
			continue
		}
		whole = append(whole, m)
	}
	return whole
}

// mustBePublished fails the test where not every failure of the run of a job of
// users is in Kafka, once, byte for byte.
func (w *world) mustBePublished(id string, failures int64, run int) {
	w.t.Helper()
	w.mustBePublishedOf(simulator.Users, w.env["KAFKA_TOPIC"], id, failures, run)
}

func (w *world) mustBePublishedOf(kind simulator.Kind, topic, id string, failures int64, run int) {
	w.t.Helper()
	failed, deadLetters := w.truthOf(kind, id, failures, run)
	of := func(messages []message) (job []message) {
		for _, m := range messages {
			if strings.HasPrefix(m.headers, "job: "+id+"; ") && strings.Contains(m.headers, fmt.Sprintf("run: %d; ", run)) {
				job = append(job, m)
			}
		}
		return job
	}
	mustMatch(w.t, id, of(w.consume(topic)), failed)
	mustMatch(w.t, id+" dead letters", joined(w.t, of(w.consume(topic+".dead-letter"))), deadLetters)
}

// progress returns the newest committed progress of a job, as it stands.
func (w *world) progress(id string) map[string]any {
	w.t.Helper()
	return w.allProgress()[id]
}

// allProgress returns that of all jobs.
func (w *world) allProgress() map[string]map[string]any {
	w.t.Helper()
	all := make(map[string]map[string]any)
	for _, m := range w.consume(w.env["KAFKA_TOPIC"] + ".progress") {
		var progress map[string]any
		if err := json.Unmarshal([]byte(m.value), &progress); err != nil {
			w.t.Fatal(err)
		}
		all[m.key] = progress
	}
	return all
}

// committedEnds returns the ends of the topic's partitions once no transaction is
// open in them: a commit is acknowledged before its markers are written.
func (w *world) committedEnds(client *kgo.Client, topic string) map[int32]kadm.ListedOffset {
	w.t.Helper()
	admin := kadm.NewClient(client)
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		committed, err := admin.ListCommittedOffsets(w.t.Context(), topic)
		if err != nil {
			w.t.Fatal(err)
		}
		ends, err := admin.ListEndOffsets(w.t.Context(), topic)
		if err != nil {
			w.t.Fatal(err)
		}
		settled := true
		for partition, end := range ends[topic] {
			settled = settled && end.Err == nil && committed[topic][partition].Offset == end.Offset
		}
		if settled {
			return committed[topic]
		}
		if time.Since(began) > time.Minute {
			w.t.Fatalf("a transaction in %s stays open", topic)
		}
	}
}

func reached(positions map[int32]int64, ends map[int32]kadm.ListedOffset) bool {
	for partition, end := range ends {
		if positions[partition] < end.Offset {
			return false
		}
	}
	return true
}

// lines returns the lines of a text.
func lines(text string) (list []string) {
	scanner := bufio.NewScanner(strings.NewReader(text))
	scanner.Buffer(nil, 64<<20)
	for scanner.Scan() {
		list = append(list, scanner.Text())
	}
	return list
}

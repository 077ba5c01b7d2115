package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"rebound/internal/simulator"
)

// instance is rebound serve as a process.
type instance struct {
	w       *world
	command *exec.Cmd
	log     *syncBuffer
	url     string
	ended   chan error
}

// syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// serve starts an instance and waits until it has reached the brokers.
func (w *world) serve(changes ...string) *instance {
	w.t.Helper()
	i := w.startServe(changes...)
	await(w.t, 60*time.Second, "the instance up\n"+i.log.String(), func() bool {
		status, _, _ := i.call("GET", "/metrics", "")
		return status == http.StatusOK
	})
	return i
}

// startServe starts an instance and waits until its HTTP side is there.
func (w *world) startServe(changes ...string) *instance {
	w.t.Helper()
	i := &instance{w: w, log: new(syncBuffer), ended: make(chan error, 1)}
	changes = append([]string{"HTTP_ADDR=127.0.0.1:0", "KAFKA_GROUP_ID=" + w.env["KAFKA_TOPIC"]}, changes...)
	i.command = w.command(context.Background(), []string{"serve"}, changes...)
	i.command.Stderr = i.log
	if err := i.command.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { i.ended <- i.command.Wait() }()
	w.t.Cleanup(i.kill)
	url := regexp.MustCompile(`"msg":"status page","url":"([^"]+)"`)
	await(w.t, 30*time.Second, "the instance's address\n"+i.log.String(), func() bool {
		found := url.FindStringSubmatch(i.log.String())
		if found != nil {
			i.url = found[1]
		}
		return found != nil
	})
	return i
}

// await waits until what is wanted is so. It is a process's own time.
func await(t *testing.T, patience time.Duration, what string, so func() bool) {
	t.Helper()
	for began := time.Now(); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("after %v there is still not %s", patience, what)
		}
	}
}

func (i *instance) kill() {
	i.command.Process.Kill()
	select {
	case <-i.ended:
	case <-time.After(10 * time.Second):
	}
}

// terminate stops the instance and returns how long that took.
func (i *instance) terminate() time.Duration {
	i.w.t.Helper()
	began := time.Now()
	i.command.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-i.ended:
		if err != nil {
			i.w.t.Errorf("stopped by SIGTERM it ends with %v\n%s", err, i.log)
		}
	case <-time.After(30 * time.Second):
		i.w.t.Fatalf("30 s after SIGTERM it still runs\n%s", i.log)
	}
	i.ended <- nil
	return time.Since(began)
}

// call sends a request and returns the answer's status, body and headers.
func (i *instance) call(method, path, body string, headers ...string) (int, string, http.Header) {
	i.w.t.Helper()
	request, err := http.NewRequest(method, i.url+path, strings.NewReader(body))
	if err != nil {
		i.w.t.Fatal(err)
	}
	for n := 0; n < len(headers); n += 2 {
		request.Header.Set(headers[n], headers[n+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		i.w.t.Fatalf("%v\n%s", err, i.log)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		i.w.t.Fatal(err)
	}
	return response.StatusCode, string(text), response.Header
}

func (i *instance) submit(replay bool, ids ...string) {
	i.w.t.Helper()
	body, err := json.Marshal(map[string]any{"job_ids": ids, "replay": replay})
	if err != nil {
		i.w.t.Fatal(err)
	}
	if status, answer, _ := i.call("POST", "/jobs", string(body)); status != http.StatusAccepted {
		i.w.t.Fatalf("submitting jobs: %d %s", status, answer)
	}
}

// servedJob is what GET /jobs/{id} says, as far as the tests ask.
type servedJob struct {
	State     string
	Run       int
	Published int64
}

// job asks for a job; of events, for ID?kind=events.
func (i *instance) job(id string) (j servedJob) {
	i.w.t.Helper()
	id, query, _ := strings.Cut(id, "?")
	_, body, _ := i.call("GET", "/jobs/"+url.PathEscape(id)+"?"+query, "")
	json.Unmarshal([]byte(body), &j)
	return j
}

// awaitState waits until the instance says so of the job's run.
func (i *instance) awaitState(patience time.Duration, id string, run int, state string) {
	i.w.t.Helper()
	await(i.w.t, patience, fmt.Sprintf("job %s, run %d %s\n%s", id, run, state, i.log), func() bool {
		j := i.job(id)
		return j.State == state && (j.Run == run || run == 0)
	})
}

// order writes values to the jobs topic, as a producer that is not ours.
func (w *world) order(values ...string) {
	w.t.Helper()
	topic := cmp.Or(w.env["KAFKA_JOBS_TOPIC"], w.env["KAFKA_TOPIC"]+".jobs")
	client := w.client(kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	for _, value := range values {
		if err := client.ProduceSync(w.t.Context(), &kgo.Record{Value: []byte(value)}).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// lag returns how many orders the group has not carried out yet.
func (w *world) lag() (lag int64) {
	w.t.Helper()
	client := w.client()
	described, err := kadm.NewClient(client).Lag(w.t.Context(), w.env["KAFKA_TOPIC"])
	if err != nil {
		w.t.Fatal(err)
	}
	return described[w.env["KAFKA_TOPIC"]].Lag.Total()
}

func TestServePublishesWhatArrives(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	ids := []string{"bare=", "json/+=", "string=", "http=", "again="}
	for n, id := range ids {
		w.conjure(id, int64(100+n), 50)
	}
	i := w.serve()
	await(t, 30*time.Second, "readiness", func() bool {
		status, _, _ := i.call("GET", "/readyz", "")
		return status == http.StatusOK
	})
	w.order("bare=", " bare=\n", `{"job_id":"json/+=","replay":false}`, `"string="`)
	malformed := []string{`{"job":"typo="}`, `{"job_id":"x="`, `{"job_id":"x="} {}`, "two words", "", "\xff\xfe"}
	w.order(malformed...)
	w.order("nosuch=")
	i.submit(false, "http=", "again=")
	for _, id := range ids {
		i.awaitState(30*time.Second, id, 1, "done")
	}
	i.awaitState(30*time.Second, "nosuch=", 0, "failed")
	i.submit(true, "again=")
	i.awaitState(30*time.Second, "again=", 2, "done")
	i.terminate()
	if lag := w.lag(); lag != 0 {
		t.Errorf("%d orders are left to the next instance, though all are carried out", lag)
	}

	for n, id := range ids {
		w.mustBePublished(id, int64(100+n), 1)
	}
	w.mustBePublished("again=", 104, 2)
	refused := make(map[string]bool)
	for _, m := range w.consume(w.env["KAFKA_TOPIC"] + ".dead-letter") {
		if strings.Contains(m.headers, "reason: malformed_job; ") {
			refused[m.value] = true
		}
	}
	for _, value := range malformed {
		if !refused[value] {
			t.Errorf("%q is not among the dead letters", value)
		}
	}
	if len(refused) != len(malformed) {
		t.Errorf("refused: %v", refused)
	}
}

func TestASmallJobIsDoneWhileABigOneRuns(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	w.conjure("big=", 500_000, 100)
	w.conjure("small=", 10, 100)
	i := w.serve("FULLSTORY_RATE_LIMIT=100", "FULLSTORY_RATE_BURST=10", "JOB_CONCURRENCY=1")
	i.submit(false, "big=")
	await(t, 30*time.Second, "the big job running", func() bool { return i.job("big=").Published > 5000 })
	began := time.Now()
	i.submit(false, "small=")
	i.awaitState(20*time.Second, "small=", 1, "done")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the small job took %v", took)
	}
	await(t, 30*time.Second, "the big job's next turn", func() bool { return i.job("big=").State == "running" })
	i.terminate()
	w.mustBePublished("small=", 10, 1)
}

func TestTheNextInstanceCarriesOnAtOnce(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t, simulator.Options{Latency: 50 * time.Millisecond})
	w.conjure("long=", 10_000, 50)
	first, second := w.serve(), (*instance)(nil)
	first.submit(false, "long=")
	await(t, 90*time.Second, "some pages\n"+first.log.String(), func() bool { return first.job("long=").Published > 1000 })
	second = w.serve()
	await(t, 90*time.Second, "the second one in the group", func() bool {
		_, body, _ := second.call("GET", "/metrics", "")
		return strings.Contains(body, "rebound_partitions_owned 3\n")
	})
	has := second
	if state := first.job("long="); state.State == "running" && strings.Contains(firstJobs(first), `"here":true`) {
		has = first
	}
	other := map[*instance]*instance{first: second, second: first}[has]
	before := w.progress("long=")["published"].(float64)
	stopped := time.Now()
	if took := has.terminate(); took > 5*time.Second {
		t.Errorf("it took %v to leave", took)
	}
	await(t, 20*time.Second, "the other one carrying on\n"+other.log.String(), func() bool {
		return strings.Contains(firstJobs(other), `"here":true`) && other.job("long=").State == "running"
	})
	if took := time.Since(stopped); took > 5*time.Second {
		t.Errorf("the other one carried on after %v", took)
	}
	t.Logf("carried on after %v, from at least %.0f on", time.Since(stopped), before)
	other.awaitState(120*time.Second, "long=", 1, "done")
	other.terminate()
	w.mustBePublished("long=", 10_000, 1)
}

// firstJobs returns what GET /jobs says.
func firstJobs(i *instance) string {
	_, body, _ := i.call("GET", "/jobs", "")
	return body
}

func TestAParkedJobSurvivesARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, simulator.Options{})
	w.api.Conjure(simulator.Conjured{ID: "slow=", Failures: 70, PageSize: 50, Processing: 12 * time.Second})
	w.conjure("quick=", 120, 50)
	i := w.serve("JOB_CONCURRENCY=1")
	i.submit(false, "slow=")
	i.awaitState(90*time.Second, "slow=", 0, "parked")
	i.submit(false, "quick=")
	i.awaitState(30*time.Second, "quick=", 1, "done")
	if state := i.job("slow=").State; state != "parked" {
		t.Errorf("the other job waited until this one was %s", state)
	}
	i.kill()
	again := w.serve("JOB_CONCURRENCY=1")
	again.awaitState(90*time.Second, "slow=", 1, "done")
	again.terminate()
	w.mustBePublished("slow=", 70, 1)
	w.mustBePublished("quick=", 120, 1)
}

// TestOrdersThatComeAgainAreCarriedOutOnce goes back to the begin of the jobs
// topic, as a group does that has lost its offsets.
func TestOrdersThatComeAgainAreCarriedOutOnce(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	w.conjure("a=", 200, 50)
	w.conjure("b=", 30, 50)
	i := w.serve()
	i.submit(false, "a=", "b=")
	i.submit(true, "a=")
	i.submit(true, "a=", "b=")
	i.awaitState(30*time.Second, "a=", 3, "done")
	i.awaitState(30*time.Second, "b=", 2, "done")
	i.terminate()

	client := w.client()
	admin := kadm.NewClient(client)
	if _, err := admin.DeleteGroups(t.Context(), w.env["KAFKA_TOPIC"]); err != nil {
		t.Fatal(err)
	}

	w.conjure("last=", 20, 50)
	again := w.serve()
	again.submit(true, "last=")
	again.awaitState(30*time.Second, "last=", 1, "done")
	await(t, 30*time.Second, "everything looked at\n"+again.log.String(), func() bool { return strings.Count(again.log.String(), "skipped") == 5 })
	again.terminate()
	for id, runs := range map[string]float64{"a=": 3, "b=": 2, "last=": 1} {
		if p := w.progress(id); p["run"] != runs || p["state"] != "done" {
			t.Errorf("job %s: %v, want run %v", id, p, runs)
		}
	}
	for run := 1; run <= 3; run++ {
		w.mustBePublished("a=", 200, run)
	}
}

// TestAReplayThatWasKilledGoesOn kills instances amid a replay: the run goes on
// and no other one begins.
func TestAReplayThatWasKilledGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, simulator.Options{Latency: 10 * time.Millisecond})
	w.conjure("r=", 3000, 50)
	i := w.serve()
	i.submit(false, "r=")
	i.awaitState(90*time.Second, "r=", 1, "done")
	i.submit(true, "r=")
	await(t, 90*time.Second, "some of run 2", func() bool { j := i.job("r="); return j.Run == 2 && j.Published > 500 })
	i.kill()
	i = w.serve()
	i.awaitState(90*time.Second, "r=", 2, "done")
	i.terminate()
	w.mustBePublished("r=", 3000, 1)
	w.mustBePublished("r=", 3000, 2)
}

func TestAnInstanceIsAliveBeforeTheBrokersAre(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	i := w.startServe("KAFKA_BROKERS=" + closedPort(t))
	if status, body, _ := i.call("GET", "/healthz", ""); status != http.StatusOK {
		t.Errorf("healthz: %d %s", status, body)
	}
	for _, path := range []string{"/readyz", "/", "/jobs"} {
		if status, body, _ := i.call("GET", path, ""); status != http.StatusServiceUnavailable || !strings.Contains(body, "starts") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if took := i.terminate(); took > 3*time.Second {
		t.Errorf("it took %v to stop", took)
	}
}

func TestIntakeAnswersWhatIsWrong(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	i := w.serve("HTTP_TOKEN=s3cret", "LOG_LEVEL=info")
	const authorized = "Bearer s3cret"
	many := make([]string, 100_000)
	for n := range many {
		many[n] = fmt.Sprintf("many%d=", n)
	}
	manyIDs, err := json.Marshal(map[string]any{"job_ids": many})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, method, path, body string
		token                    string
		status                   int
		want                     string
	}{
		{"no token", "POST", "/jobs", `{"job_ids":["a="]}`, "", 401, "HTTP_TOKEN"},
		{"a wrong token", "POST", "/jobs", `{"job_ids":["a="]}`, "Bearer s3creT", 401, "HTTP_TOKEN"},
		{"a token that begins rightly", "POST", "/jobs", `{"job_ids":["a="]}`, "Bearer s3cre", 401, "HTTP_TOKEN"},
		{"another scheme", "POST", "/jobs", `{"job_ids":["a="]}`, "Basic s3cret", 401, "HTTP_TOKEN"},
		{"no JSON", "POST", "/jobs", `job_ids=a`, authorized, 400, `{\"job_ids\"`},
		{"half of it", "POST", "/jobs", `{"job_ids":["a="`, authorized, 400, "EOF"},
		{"more after it", "POST", "/jobs", `{"job_ids":["a="]}{}`, authorized, 400, "follows"},
		{"a typo", "POST", "/jobs", `{"job_id":["a="]}`, authorized, 400, "job_id"},
		{"a number for an id", "POST", "/jobs", `{"job_ids":[5]}`, authorized, 400, "number"},
		{"nothing", "POST", "/jobs", `{}`, authorized, 422, "job_ids is empty"},
		{"an id with a space", "POST", "/jobs", `{"job_ids":["a=","b c"]}`, authorized, 422, "/job_ids/1"},
		{"an empty id", "POST", "/jobs", `{"job_ids":[""]}`, authorized, 422, "/job_ids/0"},
		{"an id with a NUL", "POST", "/jobs", `{"job_ids":["a\u0000"]}`, authorized, 422, "control"},
		{"dots for an id", "POST", "/jobs", `{"job_ids":[".."]}`, authorized, 422, "no job id"},
		{"a huge body", "POST", "/jobs", `{"job_ids":["` + strings.Repeat("a", 9<<20) + `"]}`, authorized, 413, "larger"},
		{"another method", "DELETE", "/jobs", "", authorized, 405, "GET and POST"},
		{"another path", "GET", "/admin", "", authorized, 404, "/metrics"},
		{"an unknown job", "GET", "/jobs/nosuch=", "", "", 404, "nothing is known"},
		{"odd characters, twice", "POST", "/jobs", `{"job_ids":["ü//%2F?#=","ü//%2F?#="]}`, authorized, 202, `{"accepted":1,"duplicates":1}`},
		{"a hundred thousand", "POST", "/jobs", string(manyIDs), authorized, 202, `"accepted":100000`},
	} {
		t.Run(c.name, func(t *testing.T) {
			headers := []string{"Content-Type", "application/json"}
			if c.token != "" {
				headers = append(headers, "Authorization", c.token)
			}
			status, body, header := i.call(c.method, c.path, c.body, headers...)
			if status != c.status || !strings.Contains(body, c.want) {
				t.Errorf("%d %.300s, want %d and %q", status, body, c.status, c.want)
			}
			if status >= 400 && header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("content type %q", header.Get("Content-Type"))
			}
			if header.Get("Access-Control-Allow-Origin") != "" || !strings.Contains(header.Get("Content-Security-Policy"), "default-src 'none'") {
				t.Errorf("headers: %v", header)
			}
		})
	}
	t.Run("another site's page", func(t *testing.T) {
		status, _, _ := i.call("POST", "/jobs", `{"job_ids":["a="]}`, "Authorization", authorized, "Origin", "https://elsewhere.example", "Sec-Fetch-Site", "cross-site")
		if status != http.StatusForbidden {
			t.Errorf("status %d", status)
		}
	})
	if strings.Contains(i.log.String(), "s3cret") {
		t.Error("the token is in the log")
	}
}

func TestIntakeWithoutTokenIsForThisMachineOnly(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	i := w.serve("HTTP_ADDR=0.0.0.0:0")
	i.url = strings.Replace(i.url, "[::]", "127.0.0.1", 1)
	i.url = strings.Replace(i.url, "0.0.0.0", "127.0.0.1", 1)
	if status, body, _ := i.call("POST", "/jobs", `{"job_ids":["a="]}`); status != http.StatusForbidden || !strings.Contains(body, "HTTP_TOKEN") {
		t.Errorf("%d %s", status, body)
	}
	local := w.serve()
	request, err := http.NewRequest("POST", local.url+"/jobs", strings.NewReader(`{"job_ids":["a="]}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Host = "rebound.attacker.example" // a name that was made to point here
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusForbidden {
		t.Errorf("under a foreign name: %d", response.StatusCode)
	}
}

// metric returns the value of one of the instance's metrics.
func (i *instance) metric(name string) float64 {
	i.w.t.Helper()
	_, body, _ := i.call("GET", "/metrics", "")
	for _, line := range lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				i.w.t.Fatal(err)
			}
			return n
		}
	}
	i.w.t.Fatalf("there is no metric %s", name)
	return 0
}

// TestSlowAndGreedyClientsDoNoHarm opens hundreds of connections that send a byte
// now and then, and submits large bodies side by side.
func TestSlowAndGreedyClientsDoNoHarm(t *testing.T) {
	if testing.Short() {
		t.Skip("counts memory, which the race detector multiplies")
	}
	w := newWorld(t, simulator.Options{})
	i := w.serve("HTTP_TOKEN=s3cret")
	address := strings.TrimPrefix(i.url, "http://")
	var slow sync.WaitGroup
	closed := make(chan time.Duration, 1000)
	began := time.Now()
	for range 300 {
		slow.Go(func() {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for _, c := range "POST /jobs HTTP/1.1\r\nHost: x\r\nX-Slow: " + strings.Repeat("a", 1000) {
				if _, err := conn.Write([]byte(string(c))); err != nil {
					closed <- time.Since(began)
					return
				}
				time.Sleep(100 * time.Millisecond) // their own slowness
			}
		})
	}
	time.Sleep(time.Second)
	for range 10 {
		asked := time.Now()
		if status, _, _ := i.call("GET", "/healthz", ""); status != http.StatusOK || time.Since(asked) > time.Second {
			t.Errorf("healthz: %d after %v", status, time.Since(asked))
		}
	}
	ids := make([]string, 100_000)
	var greedy sync.WaitGroup
	for n := range 8 {
		for m := range ids {
			ids[m] = fmt.Sprintf("greedy-%d-%d=", n, m)
		}
		body, err := json.Marshal(map[string]any{"job_ids": ids})
		if err != nil {
			t.Fatal(err)
		}
		greedy.Go(func() {
			status, answer, _ := i.call("POST", "/jobs", string(body), "Authorization", "Bearer s3cret")
			if status != http.StatusAccepted {
				t.Errorf("%d %s", status, answer)
			}
		})
	}
	greedy.Wait()
	slow.Wait()
	close(closed)
	n, last := 0, time.Duration(0)
	for after := range closed {
		n++
		last = max(last, after)
	}
	if n != 300 || last > 15*time.Second {
		t.Errorf("%d of 300 slow connections were closed, the last after %v", n, last)
	}
	await(t, 10*time.Second, "file descriptors closed", func() bool { return i.metric("process_open_fds") < 100 })
	if rss := i.metric("process_resident_memory_bytes"); rss > 200<<20 {
		t.Errorf("%.0f MiB of memory after 800,000 jobs were submitted", rss/(1<<20))
	} else {
		t.Logf("%.0f MiB of memory after 800,000 jobs were submitted", rss/(1<<20))
	}
}

// TestManySmallJobsLeaveNothingBehind carries out very many jobs: neither memory,
// nor goroutines, nor file descriptors grow with them. REBOUND_SOAK says how many.
func TestManySmallJobsLeaveNothingBehind(t *testing.T) {
	n := 1500
	if testing.Short() {
		n = 500
	}
	if text := os.Getenv("REBOUND_SOAK"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t, simulator.Options{})
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("small-%d=", i)
		w.conjure(ids[i], int64(i%20), 10)
	}
	i := w.serve("COMMIT_INTERVAL=1s")
	for some := range slices.Chunk(ids, 100_000) {
		i.submit(false, some...)
	}
	type use struct{ goroutines, files, memory float64 }
	var first use
	measure := func() use {
		return use{i.metric("go_goroutines"), i.metric("process_open_fds"), i.metric("process_resident_memory_bytes") / (1 << 20)}
	}
	began := time.Now()
	for done := 0.0; done < float64(n); time.Sleep(100 * time.Millisecond) {
		done = i.metric(`rebound_jobs_total{state="done"}`)
		if first.files == 0 && done > float64(n)/4 {
			first = measure()
		}
		if time.Since(began) > time.Hour {
			t.Fatalf("%.0f of %d jobs are done", done, n)
		}
	}
	last := measure()
	t.Logf("%d jobs in %v, %.0f a second; after a quarter %+v, at the end %+v", n, time.Since(began).Round(time.Second), float64(n)/time.Since(began).Seconds(), first, last)
	if last.goroutines > first.goroutines+20 || last.files > first.files+20 || last.memory > first.memory*1.25+8 {
		t.Errorf("after a quarter %+v, at the end %+v", first, last)
	}
	i.terminate()
	list := w.run([]string{"jobs", "--state", "done"}).must(t, 0)
	if done := len(lines(list.stdout)); done != n {
		t.Errorf("%d jobs are done, want %d", done, n)
	}
}

// TestTracesFollowAJob has a collector take the spans: one a job, a page and a
// commit, in the trace that the order carries, which is on the messages, too.
func TestTracesFollowAJob(t *testing.T) {
	var mu sync.Mutex
	spans := make(map[string]int)
	traces := make(map[string]bool)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var request collectorpb.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &request); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, resource := range request.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				for _, span := range scope.Spans {
					spans[span.Name]++
					traces[hex.EncodeToString(span.TraceId)] = true
				}
			}
		}
	}))
	defer collector.Close()
	w := newWorld(t, simulator.Options{})
	w.conjure("traced=", 500, 50)
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	i := w.serve("OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL)
	client := w.client()
	await(t, 30*time.Second, "readiness", func() bool { status, _, _ := i.call("GET", "/readyz", ""); return status == http.StatusOK })
	order := &kgo.Record{Topic: w.env["KAFKA_TOPIC"] + ".jobs", Value: []byte("traced="),
		Headers: []kgo.RecordHeader{{Key: "traceparent", Value: []byte("00-" + trace + "-00f067aa0ba902b7-01")}}}
	if err := client.ProduceSync(t.Context(), order).FirstErr(); err != nil {
		t.Fatal(err)
	}
	i.awaitState(30*time.Second, "traced=", 1, "done")
	i.terminate()
	mu.Lock()
	defer mu.Unlock()
	if spans["job"] != 1 || spans["page"] < 10 || spans["commit"] < 1 || len(traces) != 1 || !traces[trace] {
		t.Errorf("spans %v in traces %v", spans, traces)
	}
	for _, m := range w.consume(w.env["KAFKA_TOPIC"]) {
		if !strings.Contains(m.headers, "traceparent: 00-"+trace+"-") {
			t.Fatalf("headers: %s", m.headers)
		}
	}
	w.run([]string{"verify", "traced="}).must(t, 0) // a trace is no difference
}

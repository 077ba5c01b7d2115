package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"rebound/internal/fleet"
	"rebound/pipeline"
)

// crowd is an instance with so many jobs that run.
type crowd int

func (c crowd) Tasks(int) (tasks []fleet.Task) {
	for i := range int(c) {
		id := fmt.Sprintf("ZXhhbXBsZS1qb2It%06d==", i)
		tasks = append(tasks, fleet.Task{Job: pipeline.JobKey{ID: id}, State: fleet.Running, Since: time.Now(),
			Progress: pipeline.Progress{JobID: id, Run: 1, State: pipeline.Running, Published: int64(1000 * i), TotalRecords: 2_000_000}})
	}
	return tasks
}

func (c crowd) Task(pipeline.JobKey) (fleet.Task, bool) { return fleet.Task{}, false }

func (c crowd) Progress(context.Context, pipeline.JobKey) (pipeline.Progress, error) {
	return pipeline.Progress{}, nil
}
func (c crowd) Counts() map[fleet.State]int { return map[fleet.State]int{fleet.Running: int(c)} }
func (c crowd) Share() (int, int, float64)  { return 3, 6, 5 }
func (c crowd) Ready() error                { return nil }

// cutOff is an instance that Kafka does not answer.
type cutOff struct{ crowd }

func (cutOff) Progress(context.Context, pipeline.JobKey) (pipeline.Progress, error) {
	return pipeline.Progress{}, errors.New("connection refused")
}

// store is Kafka with nothing in it, or out of order.
type store struct{ err error }

func (s store) Submit(context.Context, []pipeline.Order) error { return s.err }
func (s store) FollowProgress(ctx context.Context, _ int, _ int64, _ func(pipeline.Progress)) error {
	<-ctx.Done()
	return ctx.Err()
}
func (s store) ProgressPartitions() int    { return 1 }
func (s store) Ping(context.Context) error { return s.err }

func get(t *testing.T, handler http.Handler, path string) (int, string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
	return recorder.Code, recorder.Body.String()
}

func TestMetricsStaySmall(t *testing.T) {
	m := NewMetrics()
	m.Watch(crowd(1000), func() time.Duration { return time.Minute })
	codes := make(map[string]int64)
	for round := range 20 {
		clear(codes)
		for i := range 50 {
			codes[fmt.Sprintf("some_code_that_the_api_gives_%d", 50*round+i)] = 3
		}
		m.Committed(pipeline.Committed{Codes: codes, Reasons: map[string]int64{"no_user": 1}, Took: time.Millisecond})
	}
	server := New(Options{Fleet: crowd(1000), Kafka: store{}, Metrics: m})
	status, body := get(t, server, "/metrics")
	if status != http.StatusOK || len(body) > 300_000 {
		t.Fatalf("%d, %d bytes", status, len(body))
	}
	if n := strings.Count(body, "rebound_records_published_total{"); n != 51 {
		t.Errorf("%d codes", n)
	}
	for _, want := range []string{`rebound_records_published_total{code="other"} 2850`, `rebound_dead_letters_total{reason="no_user"} 20`,
		"rebound_rate_limit_wait_seconds_total 60", `rebound_jobs_total{state="done"} 0`, "go_goroutines", "process_open_fds"} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is missing", want)
		}
	}
	t.Logf("%d bytes with 1,000 jobs and 1,000 codes", len(body))
}

func TestRequestsAreCountedToTheirEnd(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/cut" {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusTooManyRequests)
		io.WriteString(w, "slow down")
	}))
	defer api.Close()
	m := NewMetrics()
	client := &http.Client{Transport: m.Transport(http.DefaultTransport)}
	response, err := client.Get(api.URL)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
	response.Body.Close()
	client.Get(api.URL + "/cut")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	request, err := http.NewRequestWithContext(cancelled, http.MethodGet, api.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	client.Do(request)
	_, body := get(t, New(Options{Fleet: crowd(0), Kafka: store{}, Metrics: m}), "/metrics")
	for _, want := range []string{`rebound_api_requests_total{status="429"} 1`, `rebound_api_requests_total{status="error"} 1`, "rebound_api_request_duration_seconds_count 2"} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is missing:\n%s", want, body)
		}
	}
}

func TestHealthAndReadinessDiffer(t *testing.T) {
	down := New(Options{Fleet: cutOff{1}, Kafka: store{errors.New("connection refused")}, Metrics: NewMetrics()})
	if status, _ := get(t, down, "/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d", status)
	}
	if status, body := get(t, down, "/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "connection refused") {
		t.Errorf("readyz: %d %s", status, body)
	}
	if status, body := get(t, down, "/jobs/unknown="); status != http.StatusServiceUnavailable {
		t.Errorf("a job: %d %s", status, body)
	}
}

func TestNothingOnThePageIsTakenForMarkup(t *testing.T) {
	m := NewMetrics()
	m.Committed(pipeline.Committed{Codes: map[string]int64{`<script>alert(1)</script>`: 1}})
	server := New(Options{Fleet: crowd(2), Kafka: store{}, Metrics: m, Name: `"><img src=x>`})
	server.board.take(pipeline.Progress{JobID: `<b>"'&`, State: pipeline.Failed, Reason: "</td><script>x</script>"})
	status, body := get(t, server, "/")
	if status != http.StatusOK || strings.Contains(body, "<b>") || strings.Contains(body, "<img") || strings.Count(body, "<script") != 1 {
		t.Errorf("%d\n%s", status, body)
	}
}

func TestTheBoardForgetsTheOldest(t *testing.T) {
	b := newBoard(crowd(0))
	began := time.Now()
	for i := range 10_000 {
		b.take(pipeline.Progress{JobID: fmt.Sprint(i), State: pipeline.Done, UpdatedAt: began.Add(time.Duration(i) * time.Second)})
	}
	jobs := b.jobs()
	if len(jobs) > 2*maxRecent || jobs[0].JobID != "9999" {
		t.Errorf("%d jobs, first %s", len(jobs), jobs[0].JobID)
	}
}

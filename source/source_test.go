package source_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rebound/internal/simulator"
	"rebound/pipeline"
	"rebound/source"
)

// handlerTransport answers requests by a handler, in the same bubble of time.
type handlerTransport struct{ http.Handler }

func (t handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	recorder := httptest.NewRecorder()
	t.ServeHTTP(recorder, r)
	return recorder.Result(), nil
}

// newAPI returns a client of the handler, with patience as by default.
func newAPI(handler http.Handler, change func(*source.Options)) *source.API {
	options := source.Options{
		BaseURL:        "http://fullstory.test",
		APIKey:         "key",
		Bucket:         source.NewBucket(10, 10),
		RequestTimeout: 30 * time.Second,
		RetryTimeout:   15 * time.Minute,
		JobTimeout:     24 * time.Hour,
		Transport:      handlerTransport{handler},
	}
	if change != nil {
		change(&options)
	}
	return source.New(options)
}

// collect reads a job to its end and returns its results.
func collect(ctx context.Context, api *source.API, jobID, token string) (results []string, err error) {
	for page, err := range api.Pages(ctx, jobID, token) {
		if err != nil {
			return results, err
		}
		for _, r := range page.Results {
			results = append(results, string(r.Raw))
		}
	}
	return results, nil
}

// answers is a handler that gives one answer after the other, the last one for
// ever, and remembers when it was asked for what.
type answers struct {
	list  []answer
	asked []time.Time
	urls  []*url.URL
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (a *answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	next := a.list[min(len(a.asked), len(a.list)-1)]
	a.asked = append(a.asked, time.Now())
	a.urls = append(a.urls, r.URL)
	for name, values := range next.header {
		w.Header()[name] = values
	}
	w.WriteHeader(next.status)
	io.WriteString(w, next.body)
}

const lastPage = `{"results":[{"code":"c","user":{}}],"total_records":"1"}`

func ok(body string) answer { return answer{status: 200, body: body} }

func TestPagesAreReadToTheEnd(t *testing.T) {
	for _, c := range []struct {
		name  string
		pages []string
		want  int
	}{
		{"one page without a next token", []string{lastPage}, 1},
		{"the next token is null on the last page", []string{`{"results":[1],"next_page_token":"a="}`, `{"results":[2],"next_page_token":null}`}, 2},
		{"the next token is empty on the last page", []string{`{"results":[1],"next_page_token":"a="}`, `{"results":[2],"next_page_token":""}`}, 2},
		{"the next token stands before the results", []string{`{"next_page_token":"a=","results":[{"user":{}}]}`, `{"results":[2]}`}, 2},
		{"a page without results is not the end", []string{`{"next_page_token":"a=","total_records":"1"}`, `{"results":[2]}`}, 1},
		{"results that are null are none", []string{`{"results":null,"next_page_token":"a="}`, `{"results":[2]}`}, 1},
		{"a user that looks like a page does not mislead", []string{
			`{"next_page_token":"a=","results":[{"user":{"next_page_token":"wrong="}}]}`, `{"results":[2]}`}, 2},
		{"total_records is a number", []string{`{"results":[1],"total_records":1}`}, 1},
		{"a job without failures", []string{`{}`}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				handler := &answers{}
				for _, page := range c.pages {
					handler.list = append(handler.list, ok(page))
				}
				results, err := collect(t.Context(), newAPI(handler, nil), "job", "")
				if err != nil || len(results) != c.want {
					t.Errorf("got %d results, error %v; want %d", len(results), err, c.want)
				}
				if len(handler.asked) != len(c.pages) {
					t.Errorf("asked %d times for %d pages", len(handler.asked), len(c.pages))
				}
			})
		})
	}
}

func TestIDsAndTokensAreEscaped(t *testing.T) {
	handler := &answers{list: []answer{ok(lastPage)}}
	const id, token = "a/b+c=-_ü", "t+o/k=&e n"
	if _, err := collect(t.Context(), newAPI(handler, nil), id, token); err != nil {
		t.Fatal(err)
	}
	got := handler.urls[0]
	if want := "/v2/users/batch/a%2Fb%2Bc%3D-_%C3%BC/errors"; got.EscapedPath() != want {
		t.Errorf("path %s, want %s", got.EscapedPath(), want)
	}
	if got.Query().Get("page_token") != token {
		t.Errorf("token %q arrived as %q", token, got.Query().Get("page_token"))
	}
}

func TestWhatIsWorthAnotherTryIsTriedAgain(t *testing.T) {
	for _, c := range []struct {
		name  string
		first answer
		least time.Duration // before the second request
		most  time.Duration
	}{
		{"500 with the API's error", answer{status: 500, body: `{"code":"internal","message":"m"}`}, 0, time.Second},
		{"503 with a proxy's HTML", answer{status: 503, body: "<html>"}, 0, time.Second},
		{"200 with a proxy's HTML", answer{status: 200, body: "<html>"}, 0, time.Second},
		{"a body that is cut short", answer{status: 200, body: lastPage[:30]}, 0, time.Second},
		{"an empty body", answer{status: 200}, 0, time.Second},
		{"202 waits two seconds", answer{status: 202}, 2 * time.Second, 2 * time.Second},
		{"202 with a body", answer{status: 202, body: "{}"}, 2 * time.Second, 2 * time.Second},
		{"429 with seconds", answer{status: 429, header: http.Header{"Retry-After": {"7"}}}, 7 * time.Second, 7 * time.Second},
		{"429 with a date", answer{status: 429, header: http.Header{"Retry-After": {"Sat, 01 Jan 2000 00:00:09 GMT"}}}, 9 * time.Second, 9 * time.Second},
		{"429 with nothing", answer{status: 429}, 0, time.Second},
		{"429 with nonsense", answer{status: 429, header: http.Header{"Retry-After": {"soon"}}}, 0, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				handler := &answers{list: []answer{c.first, ok(lastPage)}}
				results, err := collect(t.Context(), newAPI(handler, nil), "job", "")
				if err != nil || len(results) != 1 {
					t.Fatalf("got %d results, error %v", len(results), err)
				}
				if waited := handler.asked[1].Sub(handler.asked[0]); waited < c.least || waited > c.most {
					t.Errorf("waited %v, want %v to %v", waited, c.least, c.most)
				}
			})
		})
	}
}

func TestWhatEndsAJobAtOnce(t *testing.T) {
	for _, c := range []struct {
		status int
		hint   string
	}{
		{400, "check the job id"},
		{401, "FULLSTORY_API_KEY"},
		{403, "permission"},
		{404, "check the job id"},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			handler := &answers{list: []answer{{status: c.status, body: `{"code":"the_code","message":"the message"}`}}}
			_, err := collect(t.Context(), newAPI(handler, nil), "job=", "")
			var refused *source.Error
			if !errors.As(err, &refused) || refused.Status != c.status {
				t.Fatalf("error %v", err)
			}
			for _, part := range []string{"job=", "the_code", "the message", c.hint} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			if len(handler.asked) != 1 {
				t.Errorf("asked %d times", len(handler.asked))
			}
		})
	}
}

func TestARefusedPageTokenIsToldFromARefusedJob(t *testing.T) {
	for _, c := range []struct {
		status int
		token  string
		want   bool
	}{
		{400, "old=", true}, {404, "old=", true}, {401, "old=", false}, {400, "", false}, {404, "", false},
	} {
		handler := &answers{list: []answer{{status: c.status}}}
		_, err := collect(t.Context(), newAPI(handler, nil), "job", c.token)
		if errors.Is(err, pipeline.ErrPageToken) != c.want {
			t.Errorf("status %d, token %q: ErrPageToken is %v", c.status, c.token, !c.want)
		}
	}
}

func TestPatienceEnds(t *testing.T) {
	for _, c := range []struct {
		name    string
		forever answer
		setting string
		least   time.Duration
	}{
		{"a page that keeps failing", answer{status: 500}, "FULLSTORY_RETRY_TIMEOUT", 15 * time.Minute},
		{"a job that is processed for ever", answer{status: 202}, "FULLSTORY_JOB_TIMEOUT", 24 * time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				handler := &answers{list: []answer{c.forever}}
				began := time.Now()
				_, err := collect(t.Context(), newAPI(handler, nil), "job", "")
				if err == nil || !strings.Contains(err.Error(), c.setting) {
					t.Errorf("error %v does not name %s", err, c.setting)
				}
				if took := time.Since(began); took < c.least || took > c.least+time.Minute {
					t.Errorf("gave up after %v, want %v", took, c.least)
				}
				// 202 is asked again after 2 s at first, and once a minute in the end.
				if c.forever.status == 202 {
					n := len(handler.asked)
					if first, last := handler.asked[1].Sub(handler.asked[0]), handler.asked[n-2].Sub(handler.asked[n-3]); first != 2*time.Second || last != time.Minute {
						t.Errorf("asked after %v first and every %v in the end", first, last)
					}
				}
			})
		})
	}
}

func TestARepeatedTokenIsAnErrorAndItsPageIsNotYielded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// The first page leads to a, a to b, b back to a.
			next := map[string]string{"": "a", "a": "b", "b": "a"}[r.URL.Query().Get("page_token")]
			fmt.Fprintf(w, `{"results":[1],"next_page_token":%q}`, next)
		})
		results, err := collect(t.Context(), newAPI(handler, nil), "job", "")
		if err == nil || !strings.Contains(err.Error(), "seen before") || len(results) != 2 {
			t.Errorf("%d results, error %v; want 2 and an error", len(results), err)
		}
	})
}

func TestCancellingEndsEveryWaitAtOnce(t *testing.T) {
	for _, c := range []struct {
		name    string
		forever answer
	}{
		{"while the job is processed", answer{status: 202}},
		{"while the API asks to wait", answer{status: 429, header: http.Header{"Retry-After": {"3600"}}}},
		{"while a page is tried again", answer{status: 500}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				began := time.Now()
				_, err := collect(ctx, newAPI(&answers{list: []answer{c.forever}}, nil), "job", "")
				if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != time.Minute {
					t.Errorf("error %v after %v", err, took)
				}
			})
		})
	}
}

// The bucket's contract: in no window does more arrive than the burst and the
// rate allow, and while pages are waiting nearly all of it is used.
func TestTheBucketIsNeverExceededAndFullyUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, burst, jobs, pages = 50, 10, 5, 100
		api := simulator.New(simulator.Options{PageSize: 1})
		client := newAPI(api, func(o *source.Options) { o.Bucket = source.NewBucket(rate, burst) })
		done := make(chan error)
		began := time.Now()
		for job := range jobs {
			id := fmt.Sprintf("job%d", job)
			api.Conjure(simulator.Conjured{ID: id, Failures: pages})
			go func() {
				_, err := collect(t.Context(), client, id, "")
				done <- err
			}()
		}
		for range jobs {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		took := time.Since(began)
		var arrivals []time.Time
		for _, a := range api.Arrivals() {
			arrivals = append(arrivals, a.At)
		}
		assertBucketKept(t, arrivals, rate, burst)
		permitted := burst + rate*took.Seconds()
		if used := float64(len(arrivals)) / permitted; len(arrivals) != jobs*pages || used < 0.95 {
			t.Errorf("%d requests in %v, %.0f %% of what was permitted", len(arrivals), took, 100*used)
		}
	})
}

func TestJobsShareTheBucketFairly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, burst, jobs = 200, 20, 100
		api := simulator.New(simulator.Options{PageSize: 1})
		client := newAPI(api, func(o *source.Options) { o.Bucket = source.NewBucket(rate, burst) })
		// Long enough that the burst, which whoever comes first may take, is
		// little.
		const duration = 10 * time.Minute
		ctx, cancel := context.WithTimeout(t.Context(), duration)
		defer cancel()
		pages := make([]int, jobs)
		done := make(chan struct{})
		for job := range jobs {
			id := fmt.Sprintf("job%d", job)
			api.Conjure(simulator.Conjured{ID: id, Failures: 1_000_000})
			go func() {
				for range client.Pages(ctx, id, "") {
					pages[job]++
				}
				done <- struct{}{}
			}()
		}
		for range jobs {
			<-done
		}
		const permitted = int(rate*duration/time.Second) + burst
		const share = permitted / jobs
		for job, n := range pages {
			if n < share*9/10 || n > share*11/10 {
				t.Errorf("job %d got %d pages, its share is %d", job, n, share)
			}
		}
		if used := len(api.Arrivals()); used < permitted*98/100 {
			t.Errorf("%d requests, %d were permitted", used, permitted)
		}
	})
}

func assertBucketKept(t *testing.T, arrivals []time.Time, rate float64, burst int) {
	t.Helper()
	slices.SortFunc(arrivals, time.Time.Compare)
	for i := range arrivals {
		for j := i + burst; j < len(arrivals); j++ {
			window := arrivals[j].Sub(arrivals[i])
			if allowed := float64(burst) + rate*window.Seconds() + 1e-6; float64(j-i+1) > allowed {
				t.Fatalf("%d requests in %v from %v on, %.2f are allowed", j-i+1, window, arrivals[i], allowed)
			}
		}
	}
}

func TestA429HoldsEveryRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var arrivals []time.Time
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			arrivals = append(arrivals, time.Now())
			if len(arrivals) == 20 {
				w.Header().Set("Retry-After", "30")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			fmt.Fprintf(w, `{"results":[1],"next_page_token":"%d"}`, len(arrivals))
		})
		client := newAPI(handler, func(o *source.Options) { o.Bucket = source.NewBucket(5, 3) })
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		done := make(chan struct{})
		for job := range 4 {
			go func() {
				collect(ctx, client, fmt.Sprint("job", job), "")
				done <- struct{}{}
			}()
		}
		for range 4 {
			<-done
		}
		if pause := arrivals[20].Sub(arrivals[19]); pause < 30*time.Second {
			t.Errorf("the next request came after %v, Retry-After was 30 s", pause)
		}
		assertBucketKept(t, arrivals, 5, 3)
	})
}

// Over real TCP, against the simulator with every fault at once: each job comes
// out whole and in order.
func TestEveryFaultAtOnce(t *testing.T) {
	// 429 is left to the tests on a clock of their own: it takes seconds here.
	faults, err := simulator.ParseFaults("all=0.05,429=0,latency=0.01,garbage=0.01")
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			testEveryFault(t, seed, faults)
		})
	}
}

func testEveryFault(t *testing.T, seed uint64, faults simulator.Faults) {
	api := simulator.New(simulator.Options{Seed: seed, Faults: faults, PageSize: 50})
	api.Conjure(simulator.Conjured{ID: "job=", Failures: 2000})
	server := httptest.NewUnstartedServer(api)
	server.Config.ErrorLog = nil
	server.Start()
	defer server.Close()
	client := newAPI(nil, func(o *source.Options) {
		o.BaseURL, o.Transport, o.Bucket = server.URL, nil, source.NewBucket(1e5, 1e5)
	})
	results, err := collect(t.Context(), client, "job=", "")
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	assertTruth(t, server.URL, "job=", results)
}

func assertTruth(t *testing.T, baseURL, jobID string, results []string) {
	t.Helper()
	response, err := http.Get(baseURL + "/_simulator/jobs/" + url.PathEscape(jobID) + "/failures")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := json.NewDecoder(response.Body)
	for i := 0; ; i++ {
		var line struct{ Result []byte }
		if err := lines.Decode(&line); err == io.EOF {
			if i != len(results) {
				t.Errorf("%d results, the simulator has %d", len(results), i)
			}
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if i < len(results) && results[i] != string(line.Result) {
			t.Fatalf("result %d is %.100q, the simulator has %.100q", i, results[i], line.Result)
		}
	}
}

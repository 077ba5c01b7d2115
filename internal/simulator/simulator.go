// Package simulator is a FullStory server API, as far as batch imports of users and
// of events go: it takes imports, validates them, and pages through their failures, or
// through those of jobs that it conjures up from a seed, of any size. It can
// misbehave in every way that networks and servers do, as often as asked,
// the same way each time.
//
// FullStory's own Node client works with it unchanged.
package simulator

import (
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Options says how the API behaves.
type Options struct {
	// APIKey is the only key that is taken; empty takes any.
	APIKey string
	// Seed makes page tokens, conjured jobs and faults what they are.
	Seed uint64
	// PageSize is how many results a page has, unless the job says otherwise;
	// 0 means 1,000.
	PageSize int
	// RateLimit is how many requests a second are answered, RateBurst how many
	// at once; 0 answers all.
	RateLimit float64
	RateBurst int
	// Latency goes by before each answer.
	Latency time.Duration
	// Processing is how long an import is processed, 202 meanwhile.
	Processing time.Duration
	// Faults says how often what goes wrong.
	Faults Faults
}

// Simulator is the API. It is an [http.Handler], safe for concurrent use.
//
// Besides FullStory's calls it answers, without a key:
//
//	GET  /_simulator/requests              what arrived when, a JSON object a line
//	GET  /_simulator/jobs/{id}/failures    the truth: index and result (base64), a JSON object a line;
//	                                       with ?kind=events of a job of events
//	POST /_simulator/expire-tokens         all page tokens given out are invalid from now on
type Simulator struct {
	options Options
	limiter *rate.Limiter
	mux     *http.ServeMux

	mu          sync.Mutex
	jobs        map[jobKey]job
	idempotency map[string]jobKey
	created     int
	generation  uint64 // of page tokens
	attempts    map[string]int
	arrivals    []Arrival
	next        int // where in arrivals the next one goes, once they are many
}

// Arrival is a request that came in.
type Arrival struct {
	At     time.Time `json:"at"`
	Method string    `json:"method"`
	Path   string    `json:"path"`
	Status int       `json:"status"`
}

// keptArrivals bounds the log of arrivals.
const keptArrivals = 200_000

// New returns an API without jobs.
func New(options Options) *Simulator {
	if options.PageSize == 0 {
		options.PageSize = 1000
	}
	s := &Simulator{
		options:     options,
		jobs:        make(map[jobKey]job),
		idempotency: make(map[string]jobKey),
		attempts:    make(map[string]int),
		mux:         http.NewServeMux(),
	}
	if options.RateLimit > 0 {
		s.limiter = rate.NewLimiter(rate.Limit(options.RateLimit), max(options.RateBurst, 1))
	}
	api := func(pattern string, answer func(*http.Request) (int, any)) {
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			status, body := answer(r)
			writeJSON(w, status, body)
		})
	}
	api("POST /v2/{kind}/batch", s.createImport)
	api("GET /v2/{kind}/batch/{id}", s.importStatus)
	api("GET /v2/{kind}/batch/{id}/imports", s.imports)
	s.mux.HandleFunc("GET /v2/{kind}/batch/{id}/errors", s.errors)
	s.mux.HandleFunc("GET /_simulator/requests", s.listArrivals)
	s.mux.HandleFunc("GET /_simulator/jobs/{id}/failures", s.listFailures)
	s.mux.HandleFunc("POST /_simulator/expire-tokens", func(w http.ResponseWriter, _ *http.Request) {
		s.ExpireTokens()
		w.WriteHeader(http.StatusNoContent)
	})
	return s
}

// ServeHTTP answers a request.
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/_simulator/") {
		s.mux.ServeHTTP(w, r)
		return
	}
	recorder := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
	arrived := time.Now()
	defer func() {
		s.record(Arrival{At: arrived, Method: r.Method, Path: r.URL.RequestURI(), Status: recorder.status})
	}()
	if s.options.Latency > 0 {
		time.Sleep(s.options.Latency)
	}
	switch {
	case !s.authorized(r):
		writeError(recorder, http.StatusUnauthorized, "unauthorized", "The API key is missing or invalid")
	case s.limiter != nil && !s.limiter.Allow():
		recorder.Header().Set("Retry-After", "1")
		writeError(recorder, http.StatusTooManyRequests, "too_many_requests", "Rate limit exceeded")
	default:
		s.mux.ServeHTTP(recorder, r)
	}
}

func (s *Simulator) authorized(r *http.Request) bool {
	key := strings.TrimPrefix(r.Header.Get("Authorization"), "Basic ")
	if s.options.APIKey == "" {
		return key != ""
	}
	return key == strings.TrimPrefix(s.options.APIKey, "Basic ")
}

type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *statusRecorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (s *Simulator) record(a Arrival) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.arrivals) < keptArrivals {
		s.arrivals = append(s.arrivals, a)
		return
	}
	s.arrivals[s.next] = a
	s.next = (s.next + 1) % keptArrivals
}

// Arrivals returns the requests that came in, the newest last; the oldest are
// dropped once they are very many.
func (s *Simulator) Arrivals() []Arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(append([]Arrival(nil), s.arrivals[s.next:]...), s.arrivals[:s.next]...)
}

// ExpireTokens makes every page token given out so far invalid.
func (s *Simulator) ExpireTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation++
}

func (s *Simulator) listArrivals(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/jsonl")
	lines := json.NewEncoder(w)
	for _, a := range s.Arrivals() {
		if lines.Encode(a) != nil {
			return
		}
	}
}

func (s *Simulator) listFailures(w http.ResponseWriter, r *http.Request) {
	j := s.job(jobKey{kindOf(r.URL.Query().Get("kind")), r.PathValue("id")})
	if j == nil {
		writeError(w, http.StatusNotFound, "not_found", "No such job")
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	lines := json.NewEncoder(w)
	for i, result := range failuresOf(j) {
		line := struct {
			Index  int64  `json:"index"`
			Result []byte `json:"result"`
		}{i, result}
		if lines.Encode(line) != nil {
			return
		}
	}
}

// Failures yields the failures of a job as they really are. A result is valid
// until the next one.
func (s *Simulator) Failures(kind Kind, id string) iter.Seq2[int64, []byte] {
	return failuresOf(s.job(jobKey{kind, id}))
}

func failuresOf(j job) iter.Seq2[int64, []byte] {
	return func(yield func(int64, []byte) bool) {
		if j == nil {
			return
		}
		var result []byte
		for i := range j.failures() {
			if result = j.appendFailure(result[:0], i); !yield(i, result) {
				return
			}
		}
	}
}

func (s *Simulator) job(key jobKey) job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jobs[key]
}

// requested returns the job that a request's path names.
func (s *Simulator) requested(r *http.Request) job {
	return s.job(jobKey{kindOf(r.PathValue("kind")), r.PathValue("id")})
}

func (s *Simulator) importStatus(r *http.Request) (int, any) {
	j := s.requested(r)
	if j == nil {
		return notFound()
	}
	return http.StatusOK, map[string]any{"imports": j.imported(), "errors": j.failures(), "job": j.metadata()}
}

func notFound() (int, any) {
	return http.StatusNotFound, apiError{"No import job has this id", "not_found"}
}

// errors answers with a page of failures, or as the faults have it.
func (s *Simulator) errors(w http.ResponseWriter, r *http.Request) {
	id, token := r.PathValue("id"), r.URL.Query().Get("page_token")
	j := s.requested(r)
	if j == nil {
		status, body := notFound()
		writeJSON(w, status, body)
		return
	}
	if j.processing() {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	var begin, spin int64
	if token != "" {
		var err error
		if begin, spin, err = s.decodeToken(id, token); err != nil {
			writeError(w, http.StatusBadRequest, "invalid_page_token", err.Error())
			return
		}
	}
	faults := s.faults(id, token)
	if faults.beforeBody(w) {
		return
	}
	page := s.appendPage(getBuffer(), j, begin, spin, faults)
	defer putBuffer(page)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(page)))
	faults.write(w, page)
}

// appendPage appends a page of failures that begins with the one at begin. Spin
// counts the empty pages in a row before it.
func (s *Simulator) appendPage(dst []byte, j job, begin, spin int64, faults *requestFaults) []byte {
	end := min(begin+int64(j.pageSize()), j.failures())
	next := ""
	switch {
	case spin < 3 && faults.strikes(Empty):
		end = begin
		next = s.encodeToken(j.id(), begin, spin+1)
	case begin > 0 && faults.strikes(Repeated):
		// The token of a page that was read before, or of this very page.
		back := begin / 2
		back -= back % int64(j.pageSize())
		if next = s.encodeToken(j.id(), back, 0); back == 0 {
			next = s.encodeToken(j.id(), begin, spin)
		}
	case end < j.failures():
		next = s.encodeToken(j.id(), end, 0)
	}
	dst = append(dst, '{')
	if end > begin {
		dst = append(dst, `"results":[`...)
		for i := begin; i < end; i++ {
			if i > begin {
				dst = append(dst, ',')
			}
			dst = j.appendFailure(dst, i)
		}
		dst = append(dst, `],`...)
	}
	dst = append(dst, `"total_records":"`...)
	dst = strconv.AppendInt(dst, j.claimed(), 10)
	dst = append(dst, `","next_page_token":"`...)
	dst = append(dst, next...)
	return append(dst, `"}`...)
}

func (s *Simulator) imports(r *http.Request) (int, any) {
	j := s.requested(r)
	if j == nil {
		return notFound()
	}
	if j.processing() {
		return http.StatusAccepted, struct{}{}
	}
	posted, ok := j.(*postedJob)
	if !ok {
		return http.StatusOK, map[string]any{"results": []any{}, "total_records": strconv.FormatInt(j.imported(), 10)}
	}
	begin := int64(0)
	if token := r.URL.Query().Get("page_token"); token != "" {
		var err error
		if begin, _, err = s.decodeToken(j.id(), token); err != nil {
			return http.StatusBadRequest, apiError{err.Error(), "invalid_page_token"}
		}
	}
	end := min(begin+int64(j.pageSize()), int64(len(posted.accepted)))
	page := map[string]any{
		"results":       posted.accepted[min(begin, end):end],
		"total_records": strconv.Itoa(len(posted.accepted)),
	}
	if end < int64(len(posted.accepted)) {
		page["next_page_token"] = s.encodeToken(j.id(), end, 0)
	}
	return http.StatusOK, page
}

type apiError struct {
	Message string `json:"message"`
	Code    string `json:"code"`
}

func writeError(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, apiError{message, code})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

// buffers holds the memory of pages.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func getBuffer() []byte  { return (*buffers.Get().(*[]byte))[:0] }
func putBuffer(b []byte) { buffers.Put(&b) }

var errToken = errors.New("the page token is invalid or has expired")

// Page returns the first page of a job, as the API would send it.
func (s *Simulator) Page(c Conjured) []byte {
	s.Conjure(c)
	return s.appendPage(nil, s.job(jobKey{c.Kind, c.ID}), 0, 0, &requestFaults{})
}

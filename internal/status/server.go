// Package status is the HTTP side of an instance: a page for people, metrics for
// Prometheus, probes for whoever runs it, and the intake of jobs.
//
// Nothing of a user is on it: jobs, counts and codes only.
package status

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"rebound/internal/fleet"
	"rebound/pipeline"
)

// Fleet is the instance that is shown.
type Fleet interface {
	Tasks(limit int) []fleet.Task
	Task(pipeline.JobKey) (fleet.Task, bool)
	Progress(context.Context, pipeline.JobKey) (pipeline.Progress, error)
	Counts() map[fleet.State]int
	Share() (partitions, of int, perSecond float64)
	Ready() error
}

// Kafka is where jobs go and where the progress of users' jobs is.
type Kafka interface {
	Submit(ctx context.Context, orders []pipeline.Order) error
	ProgressLog
	Ping(ctx context.Context) error
}

// ProgressLog is where the progress of jobs is read.
type ProgressLog interface {
	FollowProgress(ctx context.Context, partition int, newest int64, each func(pipeline.Progress)) error
	ProgressPartitions() int
}

// Options says what is served.
type Options struct {
	Fleet   Fleet
	Kafka   Kafka
	Metrics *Metrics
	// Token is what whoever submits jobs must present; empty takes jobs from
	// this machine only, and only where Loopback says that nobody else can
	// connect.
	Token    string
	Loopback bool
	// Name says which instance this is.
	Name string
	Log  *slog.Logger
}

// Server is an [http.Handler]. It is safe for concurrent use.
type Server struct {
	Options
	board   *board
	page    *template.Template
	mux     *http.ServeMux
	intake  chan struct{} // whoever reads a request's body
	viewers chan struct{}
}

//go:embed page.html page.css page.js
var files embed.FS

// New returns a server; see [Site] for what keeps it up to date.
func New(options Options) *Server {
	s := &Server{
		Options: options,
		board:   newBoard(options.Fleet),
		page:    template.Must(template.ParseFS(files, "page.html")),
		mux:     http.NewServeMux(),
		intake:  make(chan struct{}, 2),
		viewers: make(chan struct{}, 100),
	}
	s.mux.HandleFunc("GET /{$}", s.showPage)
	s.mux.HandleFunc("GET /events", s.showEvents)
	s.mux.HandleFunc("GET /page.css", file("page.css", "text/css; charset=utf-8"))
	s.mux.HandleFunc("GET /page.js", file("page.js", "text/javascript; charset=utf-8"))
	s.mux.HandleFunc("GET /healthz", s.health)
	s.mux.HandleFunc("GET /readyz", s.ready)
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(options.Metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	s.mux.HandleFunc("GET /jobs", s.listJobs)
	s.mux.HandleFunc("POST /jobs", s.takeJobs)
	return s
}

// Follow has the server show, until ctx ends, the jobs of another progress log as
// well.
func (s *Server) Follow(ctx context.Context, progress ProgressLog) {
	s.board.followProgress(ctx, progress, s.Log)
}

// ServeHTTP is part of [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	// A job id may hold slashes, which the mux would clean.
	if id, ok := strings.CutPrefix(r.URL.EscapedPath(), "/jobs/"); ok {
		s.showJob(w, r, id)
		return
	}
	if _, pattern := s.mux.Handler(r); pattern == "" {
		s.notFound(w, r)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// notFound answers for what no pattern matches, with the methods that would.
func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, pattern := s.mux.Handler(other); pattern != "" {
			allowed = append(allowed, method)
		}
	}
	if len(allowed) == 0 {
		problem(w, http.StatusNotFound, "there is nothing at this path; see /, /jobs, /metrics, /healthz and /readyz")
		return
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	problem(w, http.StatusMethodNotAllowed, "this path takes "+strings.Join(allowed, " and "))
}

func file(name, contentType string) http.HandlerFunc {
	content, err := files.ReadFile(name)
	if err != nil {
		panic(err) // it is embedded
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Write(content)
	}
}

// health tells that the process works: what it knows of its jobs can be read.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	s.Fleet.Counts()
	alive(w)
}

func alive(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "alive")
}

// ready tells that the instance is in the group and the brokers answer.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	if err := s.notReady(r.Context()); err != nil {
		problem(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ready")
}

func (s *Server) notReady(ctx context.Context) error {
	if err := s.Fleet.Ready(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := s.Kafka.Ping(ctx); err != nil {
		return fmt.Errorf("the brokers do not answer: %w", err)
	}
	return nil
}

// maxListed is how many jobs GET /jobs shows.
const maxListed = 1000

// listJobs answers with the jobs of this instance that are not through, and with
// those of all instances that changed last; counts has this instance's by state,
// whether they are listed or not.
func (s *Server) listJobs(w http.ResponseWriter, _ *http.Request) {
	jobs := s.board.jobs()
	writeJSON(w, http.StatusOK, map[string]any{"counts": s.Fleet.Counts(), "jobs": jobs[:min(len(jobs), maxListed)]})
}

// showJob answers with one job, of the kind that the query names or else of
// users, if there is one, or of events.
func (s *Server) showJob(w http.ResponseWriter, r *http.Request, escaped string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", http.MethodGet)
		problem(w, http.StatusMethodNotAllowed, "this path takes GET; jobs are submitted to /jobs")
		return
	}
	id, err := url.PathUnescape(escaped)
	if err == nil {
		err = pipeline.CheckJobID(id)
	}
	kinds := []pipeline.Kind{pipeline.Users, pipeline.Events}
	if query := r.URL.Query(); err == nil && query.Has("kind") {
		kinds = kinds[:1]
		kinds[0], err = pipeline.ParseKind(query.Get("kind"))
	}
	if err != nil {
		problem(w, http.StatusBadRequest, err.Error())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	for _, kind := range kinds {
		key := pipeline.JobKey{Kind: kind, ID: id}
		if j, ok := s.board.here(key); ok {
			writeJSON(w, http.StatusOK, j)
			return
		}
		progress, err := s.Fleet.Progress(ctx, key)
		if err != nil {
			w.Header().Set("Retry-After", "5")
			problem(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		if progress.JobID != "" {
			writeJSON(w, http.StatusOK, jobOf(progress))
			return
		}
	}
	problem(w, http.StatusNotFound, fmt.Sprintf("nothing is known of job %q: it was not submitted, or waits in another instance for its first page", id))
}

// problem answers with an error: RFC 9457.
func problem(w http.ResponseWriter, status int, detail string, more ...any) {
	body := map[string]any{"title": http.StatusText(status), "status": status, "detail": detail}
	for i := 0; i+1 < len(more); i += 2 {
		body[more[i].(string)] = more[i+1]
	}
	w.Header().Set("Content-Type", "application/problem+json")
	writeBody(w, status, body)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	writeBody(w, status, body)
}

func writeBody(w http.ResponseWriter, status int, body any) {
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	// Who has gone gets no answer.
	_ = encoder.Encode(body)
}

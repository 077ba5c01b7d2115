package status

import (
	"cmp"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"rebound/internal/fleet"
	"rebound/pipeline"
)

// Metrics counts what an instance does, for Prometheus. It is safe for concurrent
// use.
type Metrics struct {
	registry       *prometheus.Registry
	deadLetters    *prometheus.CounterVec
	requests       *prometheus.CounterVec
	requestSeconds prometheus.Histogram
	commitSeconds  prometheus.Histogram
	jobs           *prometheus.CounterVec
	published      *prometheus.Desc

	mu      sync.Mutex
	codes   map[string]int64
	records int64
	api     apiHealth
}

// apiHealth is how the API answered last.
type apiHealth struct {
	status int // 0 where no answer came
	at     time.Time
}

// mostCodes is how many codes are counted each by itself: those that are seen
// first, which are the frequent ones. The others count as "other".
const mostCodes = 50

const otherCodes = "other"

// NewMetrics returns metrics that count from nothing.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		codes:    make(map[string]int64),
		published: prometheus.NewDesc("rebound_records_published_total",
			"Failed users published and committed, by the failure's code.", []string{"code"}, nil),
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rebound_dead_letters_total", Help: "Results committed as dead letters, by reason."}, []string{"reason"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rebound_api_requests_total", Help: "Requests to the FullStory API, by HTTP status; error where no answer came."}, []string{"status"}),
		requestSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "rebound_api_request_duration_seconds", Help: "Requests to the FullStory API, from the first byte sent to the last byte received.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 13)}),
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "rebound_commit_duration_seconds", Help: "Commits: the progress, and the end of the transaction.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 13)}),
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rebound_jobs_total", Help: "Orders carried out, by the state in which they left the job."}, []string{"state"}),
	}
	for _, state := range []pipeline.State{pipeline.Done, pipeline.Incomplete, pipeline.Failed} {
		m.jobs.WithLabelValues(string(state))
	}
	m.registry.MustRegister(m.deadLetters, m.requests, m.requestSeconds, m.commitSeconds, m.jobs, codesCollector{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Committed counts what a commit published.
func (m *Metrics) Committed(c pipeline.Committed) {
	m.commitSeconds.Observe(c.Took.Seconds())
	for reason, n := range c.Reasons {
		m.deadLetters.WithLabelValues(reason).Add(float64(n))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for code, n := range c.Codes {
		if _, known := m.codes[code]; !known && len(m.codes) >= mostCodes {
			code = otherCodes
		}
		m.codes[code] += n
		m.records += n
	}
	for _, n := range c.Reasons {
		m.records += n
	}
}

// Ended counts an order that was carried out.
func (m *Metrics) Ended(e fleet.Ended) {
	state := e.Progress.State
	if e.Err != nil && state != pipeline.Incomplete {
		state = pipeline.Failed
	}
	m.jobs.WithLabelValues(string(state)).Inc()
}

// codeCount is how many records have a code.
type codeCount struct {
	Code  string
	Count int64
}

// byCode returns the codes, the most frequent first.
func (m *Metrics) byCode() []codeCount {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []codeCount
	for _, code := range slices.Sorted(maps.Keys(m.codes)) {
		list = append(list, codeCount{code, m.codes[code]})
	}
	slices.SortStableFunc(list, func(a, b codeCount) int { return cmp.Compare(b.Count, a.Count) })
	return list
}

func (m *Metrics) totals() (records int64, api apiHealth) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records, m.api
}

// codesCollector exports what is counted by code.
type codesCollector struct{ *Metrics }

func (c codesCollector) Describe(descs chan<- *prometheus.Desc) { descs <- c.published }

func (c codesCollector) Collect(metrics chan<- prometheus.Metric) {
	for _, n := range c.byCode() {
		metrics <- prometheus.MustNewConstMetric(c.published, prometheus.CounterValue, float64(n.Count), n.Code)
	}
}

// Transport returns a transport that counts the requests which it passes on.
func (m *Metrics) Transport(next http.RoundTripper) http.RoundTripper {
	return countingTransport{m, next}
}

type countingTransport struct {
	metrics *Metrics
	next    http.RoundTripper
}

func (t countingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	response, err := t.next.RoundTrip(r)
	if err != nil {
		// One that was called off says nothing of the API.
		if r.Context().Err() == nil {
			t.metrics.request(0, began)
		}
		return nil, err
	}
	response.Body = &countingBody{ReadCloser: response.Body, ended: func() { t.metrics.request(response.StatusCode, began) }}
	return response, nil
}

func (m *Metrics) request(status int, began time.Time) {
	label := "error"
	if status > 0 {
		label = strconv.Itoa(status)
	}
	m.requests.WithLabelValues(label).Inc()
	m.requestSeconds.Observe(time.Since(began).Seconds())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.api = apiHealth{status, time.Now()}
}

// countingBody calls ended when the body is closed.
type countingBody struct {
	io.ReadCloser
	once  sync.Once
	ended func()
}

func (b *countingBody) Close() error {
	b.once.Do(b.ended)
	return b.ReadCloser.Close()
}

// Watch adds what is read off an instance when it is asked for: its jobs, its
// share of the group's work, and how long requests waited for the rate limit.
func (m *Metrics) Watch(f Fleet, waited func() time.Duration) {
	m.registry.MustRegister(&fleetCollector{f, waited,
		prometheus.NewDesc("rebound_job_records", "Records of a job that runs in this instance: published, dead_lettered or remaining.", []string{"job", "state"}, nil),
		prometheus.NewDesc("rebound_jobs_in_flight", "Orders of this instance that are not carried out: queued, running or parked.", []string{"state"}, nil),
		prometheus.NewDesc("rebound_partitions_owned", "Partitions of the jobs topic that this instance has.", nil, nil),
		prometheus.NewDesc("rebound_rate_limit_share", "Requests a second that this instance may send to the FullStory API now.", nil, nil),
		prometheus.NewDesc("rebound_rate_limit_wait_seconds_total", "Time that requests have waited for the rate limit, all together.", nil, nil),
		prometheus.NewDesc("rebound_ready", "1 where the instance is in the consumer group and the brokers answer.", nil, nil),
	})
}

type fleetCollector struct {
	fleet                                             Fleet
	waited                                            func() time.Duration
	records, inFlight, partitions, share, wait, ready *prometheus.Desc
}

func (c *fleetCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.records, c.inFlight, c.partitions, c.share, c.wait, c.ready} {
		descs <- d
	}
}

func (c *fleetCollector) Collect(metrics chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	seen := make(map[pipeline.JobKey]bool)
	for _, t := range c.fleet.Tasks(0) {
		if t.State != fleet.Running || seen[t.Job] {
			continue
		}
		seen[t.Job] = true
		label := t.Job.ID
		if t.Job.Kind != pipeline.Users {
			label = t.Job.Kind.String() + "/" + label
		}
		gauge(c.records, float64(t.Progress.Published), label, "published")
		gauge(c.records, float64(t.Progress.DeadLettered), label, "dead_lettered")
		gauge(c.records, float64(max(t.Progress.TotalRecords-t.Progress.Position(), 0)), label, "remaining")
	}
	for state, n := range c.fleet.Counts() {
		gauge(c.inFlight, float64(n), string(state))
	}
	owned, _, perSecond := c.fleet.Share()
	gauge(c.partitions, float64(owned))
	gauge(c.share, perSecond)
	metrics <- prometheus.MustNewConstMetric(c.wait, prometheus.CounterValue, c.waited().Seconds())
	ready := 0.0
	if c.fleet.Ready() == nil {
		ready = 1
	}
	gauge(c.ready, ready)
}

// Package source reads the failures of import jobs from the FullStory server API:
// page by page, under one token bucket, through everything that is worth another
// try.
//
// https://developer.fullstory.com/server/users/get-batch-import-errors/
// https://developer.fullstory.com/server/events/get-batch-events-import-errors/
package source

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"rebound/internal/clock"
	"rebound/pipeline"
)

// maxBody is the largest body that is read, after decompression.
const maxBody = 512 << 20

// Options says how to reach the API. The zero durations mean no time at all:
// set them.
type Options struct {
	// Kind is that of the jobs.
	Kind pipeline.Kind
	// BaseURL is where the API is, such as https://api.fullstory.com.
	BaseURL string
	// APIKey is sent as it is behind "Basic "; one that begins with "Basic "
	// already is not given another.
	APIKey string
	// Bucket holds back requests.
	Bucket *Bucket
	// RequestTimeout bounds one request, headers and body.
	RequestTimeout time.Duration
	// RetryTimeout is how long one page may keep failing in a way that is
	// worth another try.
	RetryTimeout time.Duration
	// JobTimeout is how long to wait for a job that is still processing.
	JobTimeout time.Duration
	// Park leaves that waiting to the caller: the error is [ErrProcessing] at
	// once.
	Park bool
	// Transport carries the requests; nil means that of [NewTransport].
	Transport http.RoundTripper
	// Log takes each wait and each failed try; nil discards it.
	Log *slog.Logger
}

// API is a client of the FullStory server API. It is safe for concurrent use.
type API struct {
	kind          pipeline.Kind
	jobs          string // the URL that job ids follow
	authorization string
	bucket        *Bucket
	bodies        *bodies
	http          *http.Client
	options       Options
	log           *slog.Logger
}

// New returns a client of the API.
func New(options Options) *API {
	if options.Transport == nil {
		options.Transport = NewTransport()
	}
	authorization := strings.TrimSpace(options.APIKey)
	if !strings.HasPrefix(authorization, "Basic ") {
		authorization = "Basic " + authorization
	}
	log := options.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	all := &API{
		authorization: authorization,
		bucket:        options.Bucket,
		bodies:        newBodies(),
		http:          &http.Client{Transport: options.Transport},
		options:       options,
		log:           log,
	}
	return all.Of(options.Kind)
}

// NewTransport returns the transport that is used where the options name none:
// its connections are used again, by all jobs.
func NewTransport() http.RoundTripper {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = transport.MaxIdleConns
	return transport
}

func (a *API) errorsURL(jobID, pageToken string) string {
	u := a.jobs + escape(jobID) + "/errors"
	if pageToken != "" {
		u += "?page_token=" + escape(pageToken)
	}
	return u
}

// escape escapes all but unreserved characters, so that base64 survives as a
// path segment and as a query value: RFC 3986, section 2.3.
func escape(text string) string {
	return strings.ReplaceAll(url.QueryEscape(text), "+", "%20")
}

// get asks for url once, under the bucket, and returns the body in buf's memory
// where it fits.
func (a *API) get(ctx context.Context, url string, buf []byte) (status int, header http.Header, body []byte, err error) {
	if err := a.bucket.Wait(ctx); err != nil {
		return 0, nil, buf, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.options.RequestTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, buf, err
	}
	request.Header.Set("Authorization", a.authorization)
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "rebound")
	response, err := a.http.Do(request)
	if err != nil {
		return 0, nil, buf, err
	}
	defer response.Body.Close()
	body, err = readBody(response.Body, response.ContentLength, buf)
	return response.StatusCode, response.Header, body, err
}

// readBody reads all of r into buf, which grows as needed.
func readBody(r io.Reader, length int64, buf []byte) ([]byte, error) {
	buf = buf[:0]
	// One byte more than the length is read without growing.
	if length >= int64(cap(buf)) && length <= maxBody {
		buf = make([]byte, 0, length+1)
	}
	for {
		if len(buf) > maxBody {
			return buf, errTooLarge
		}
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), max(64<<10, min(2*cap(buf), maxBody+1)))
			copy(grown, buf)
			buf = grown
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return buf, err
		}
	}
}

// fetch asks once for a page and returns its body. Where ctx carries a span, the
// request is one below it.
func (a *API) fetch(ctx context.Context, jobID, token string, buf []byte) (body []byte, err error) {
	ctx, span := trace.SpanFromContext(ctx).TracerProvider().Tracer("rebound/source").Start(ctx, "page")
	defer func() {
		if err != nil {
			span.RecordError(err)
			span.SetStatus(codes.Error, "")
		}
		span.SetAttributes(attribute.Int("bytes", len(body)))
		span.End()
	}()
	status, header, body, err := a.get(ctx, a.errorsURL(jobID, token), buf)
	if errors.Is(err, errTooLarge) || err != nil && status == 0 {
		return body, err
	}
	if status == http.StatusOK {
		return body, err
	}
	return body, a.refusal(jobID, token, status, header, body)
}

// refusal returns what an answer other than 200 means. Where it says how long to
// wait, nobody sends a request until then.
func (a *API) refusal(jobID, token string, status int, header http.Header, body []byte) error {
	switch status {
	case http.StatusAccepted:
		return ErrProcessing
	case http.StatusTooManyRequests:
		limited := &rateLimitedError{retryAfter(header.Get("Retry-After"), time.Now())}
		a.bucket.Hold(limited.retryAfter)
		return limited
	}
	code, message := apiError(body)
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return &Error{JobID: jobID, PageToken: token, Status: status, Code: code, Message: message}
	}
	return &statusError{status, code}
}

// apiError reads the API's own error from a body; both are empty where the body
// is something else, a proxy's HTML say.
func apiError(body []byte) (code, message string) {
	var e struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	const sane = 64 << 10
	if len(body) > sane || json.Unmarshal(body, &e) != nil {
		return "", ""
	}
	return cut(e.Code, 100), cut(e.Message, 500)
}

// cut returns text on one line and no longer than n bytes.
func cut(text string, n int) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "\uFFFD")), " ")
	if len(text) > n {
		text = strings.ToValidUTF8(text[:n], "") + "…"
	}
	return text
}

// retryAfter reads a Retry-After header, RFC 9110 section 10.2.3: seconds or a
// date. It is negative where the header is missing or neither.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(date.Sub(now), 0)
	}
	return -1
}

// patience decides how long to wait before a page is asked for again, and when
// to give it up. It belongs to one page.
type patience struct {
	api     *API
	jobID   string
	token   string
	failing time.Time // since when, zero while it does not
	waiting time.Time // for the job to be processed, likewise
	retry   *backoff.ExponentialBackOff
	poll    *backoff.ExponentialBackOff
	circles int // how often the page led back to an earlier one
}

// maxCircles is how often a page may lead back to an earlier one: once may be a
// glitch.
const maxCircles = 3

func (a *API) patience(jobID, token string) *patience {
	return &patience{
		api: a, jobID: jobID, token: token,
		// A factor of 1 is full jitter: from nothing to twice the interval.
		retry: &backoff.ExponentialBackOff{
			InitialInterval: 250 * time.Millisecond, MaxInterval: 15 * time.Second, Multiplier: 2, RandomizationFactor: 1},
		poll: &backoff.ExponentialBackOff{
			InitialInterval: 2 * time.Second, MaxInterval: 60 * time.Second, Multiplier: 1.5},
	}
}

// wait waits as long as the failure calls for, then returns nil; or returns why
// the page is given up.
func (p *patience) wait(ctx context.Context, failure error) error {
	log := p.api.log.With("job", p.jobID)
	var refused *Error
	var limited *rateLimitedError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(failure, &refused):
		return failure
	case errors.Is(failure, errTooLarge):
		return fmt.Errorf("%s: %w: ask FullStory for smaller pages; nothing of this page was published",
			pageName(p.jobID, p.token), failure)

	case errors.Is(failure, ErrProcessing) && p.api.options.Park:
		return fmt.Errorf("job %s: %w", p.jobID, failure)

	case errors.Is(failure, ErrProcessing):
		if p.waiting.IsZero() {
			p.waiting = time.Now()
		}
		pause := p.poll.NextBackOff()
		left := p.api.options.JobTimeout - time.Since(p.waiting)
		if left <= 0 {
			return fmt.Errorf("job %s: %w after FULLSTORY_JOB_TIMEOUT (%v): run it again later, or raise the time-out",
				p.jobID, failure, p.api.options.JobTimeout)
		}
		pause = min(pause, left)
		log.Info("FullStory still processes the job; asking again later", "in", pause.String(),
			"waited", time.Since(p.waiting).Round(time.Second).String())
		p.failing = time.Time{}
		return clock.Sleep(ctx, pause)

	case errors.As(failure, &limited):
		pause := limited.retryAfter
		if pause < 0 {
			pause = p.retry.NextBackOff()
			p.api.bucket.Hold(pause)
		}
		if err := p.stillWorthIt(failure); err != nil {
			return err
		}
		log.Info("FullStory asks to slow down; no request leaves until then", "in", pause.Round(time.Millisecond).String())
		// The hold is the API's wish, not the page's failure.
		p.failing = p.failing.Add(pause)
		return nil
	}

	if errors.Is(failure, errRepeatedToken) {
		if p.circles++; p.circles >= maxCircles {
			return fmt.Errorf("%s: %w, %d times: following it would never end; run the job again later, and tell FullStory if it stays",
				pageName(p.jobID, p.token), failure, p.circles)
		}
	}
	if err := p.stillWorthIt(failure); err != nil {
		return err
	}
	pause := p.retry.NextBackOff()
	log.Warn("FullStory could not be read; trying again", "page", cmp.Or(p.token, "first"), "error", failure, "in", pause.Round(time.Millisecond).String())
	return clock.Sleep(ctx, pause)
}

// stillWorthIt returns an error once the page has been failing for too long.
func (p *patience) stillWorthIt(failure error) error {
	if p.failing.IsZero() {
		p.failing = time.Now()
	}
	if time.Since(p.failing) < p.api.options.RetryTimeout {
		return nil
	}
	return fmt.Errorf("%s: still failing after FULLSTORY_RETRY_TIMEOUT (%v): %w: run the job again to go on from this page",
		pageName(p.jobID, p.token), p.api.options.RetryTimeout, failure)
}

// Check asks the API once whether it takes the key. The error says what is wrong
// and what to do about it.
func (a *API) Check(ctx context.Context) error {
	// A job that there is not: any answer but a refusal of the key will do.
	const nobodysJob = "rebound-check="
	_, err := a.fetch(ctx, nobodysJob, "", nil)
	var refused *Error
	if errors.As(err, &refused) && (refused.Status == http.StatusNotFound || refused.Status == http.StatusBadRequest) ||
		errors.Is(err, ErrProcessing) {
		return nil
	}
	return err
}

// Of returns a client for another kind of jobs that shares everything with this
// one: the bucket, the connections, the memory of pages.
func (a *API) Of(kind pipeline.Kind) *API {
	other := *a
	other.kind = kind
	other.jobs = strings.TrimRight(a.options.BaseURL, "/") + "/v2/" + kind.String() + "/batch/"
	return &other
}

// Processing asks the API once whether it still processes the job:
// https://developer.fullstory.com/server/users/get-batch-import/
func (a *API) Processing(ctx context.Context, jobID string) (bool, error) {
	status, header, body, err := a.get(ctx, a.jobs+escape(jobID), nil)
	if err != nil {
		return false, err
	}
	if status != http.StatusOK {
		err := a.refusal(jobID, "", status, header, body)
		return errors.Is(err, ErrProcessing), err
	}
	var metadata struct {
		Job struct {
			Status string `json:"status"`
		} `json:"job"`
	}
	if err := json.Unmarshal(body, &metadata); err != nil {
		return false, fmt.Errorf("job %s: the API's answer about it is no JSON: %w", jobID, err)
	}
	return metadata.Job.Status == "PROCESSING", nil
}

// CheckJob asks the API once whether the job's failures can be read, and says
// how it is.
func (a *API) CheckJob(ctx context.Context, jobID string) (how string, err error) {
	body, err := a.fetch(ctx, jobID, "", nil)
	if errors.Is(err, ErrProcessing) {
		return "is still processed", nil
	}
	if err != nil {
		return "", err
	}
	page, err := newDecoder(a.kind).decode(body, "")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("has %d failures", max(page.TotalRecords, 0)), nil
}

package mend

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Mender mends the failures of jobs once rebound has published all of them.
type Mender struct {
	Rules Rules
	// BaseURL and APIKey are FullStory's.
	BaseURL, APIKey string
	// Serve is where rebound serve takes jobs, Token its HTTP_TOKEN.
	Serve, Token string
	// Topic is where failed users are; progress is on the topic with .progress
	// behind its name.
	Topic string
	// Report takes what was done about each job.
	Report func(Report)

	jobs map[string]*job
}

// Report is what was done about a job's failures.
type Report struct {
	JobID string
	// Codes counts the failures by code, Mended those of them that were imported
	// again.
	Codes, Mended map[string]int
	// Left are those that no rule mends.
	Left []Failure
	// NewJobs are the imports that were made of the others.
	NewJobs []string
}

// Failure is a failed user, as rebound publishes it.
type Failure struct {
	JobID   string          `json:"job_id"`
	Index   int64           `json:"index"`
	Code    string          `json:"code"`
	Message string          `json:"message"`
	User    json.RawMessage `json:"user"`
}

// job gathers a job's failures.
type job struct {
	run       string
	failures  []Failure
	published int // of a run that is done; -1 until it is
}

// Run mends jobs as they come until ctx ends. Given ids, it does so for these and
// for the jobs that it makes of them, and returns when all are through.
//
// A client that reads Topic and its progress, read_committed, from where it left
// off, is all that it keeps: it commits when no job is half read. What it imports
// twice after a crash has the same Idempotency-Key.
func (m *Mender) Run(ctx context.Context, client *kgo.Client, ids ...string) error {
	m.jobs = make(map[string]*job)
	wanted := make(map[string]bool)
	for _, id := range ids {
		wanted[id] = true
	}
	for len(ids) == 0 || len(wanted) > 0 {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read %s: %w", m.Topic, err)
		}
		var err error
		fetches.EachRecord(func(r *kgo.Record) { err = cmp.Or(err, m.take(r)) })
		if err != nil {
			return err
		}
		// What one job was mended to may have been read already: then nothing more
		// comes that would tell of it.
		for more := true; more; {
			more = false
			for id, j := range m.jobs {
				if j.published != len(j.failures) || len(ids) > 0 && !wanted[id] {
					continue
				}
				made, err := m.mend(ctx, id, j)
				if err != nil {
					return err
				}
				more = true
				delete(m.jobs, id)
				delete(wanted, id)
				for _, id := range made {
					wanted[id] = true
				}
			}
		}
		if len(m.jobs) == 0 {
			if err := client.CommitUncommittedOffsets(ctx); err != nil {
				return fmt.Errorf("commit the offsets: %w", err)
			}
		}
	}
	return nil
}

// take takes in a failure, or that a job is through. Nothing tells which of the
// two comes first.
func (m *Mender) take(r *kgo.Record) error {
	if strings.HasSuffix(r.Topic, ".progress") {
		var progress struct {
			JobID     string `json:"job_id"`
			Run       int    `json:"run"`
			State     string `json:"state"`
			Published int    `json:"published"`
		}
		if len(r.Value) == 0 {
			return nil
		}
		if err := json.Unmarshal(r.Value, &progress); err != nil {
			return fmt.Errorf("offset %d of %s is no progress: %w", r.Offset, r.Topic, err)
		}
		if progress.State == "done" || progress.State == "incomplete" {
			m.run(progress.JobID, fmt.Sprint(progress.Run)).published = progress.Published
		}
		return nil
	}
	var failure Failure
	if err := json.Unmarshal(r.Value, &failure); err != nil {
		return fmt.Errorf("offset %d of %s is no failed user: %w", r.Offset, r.Topic, err)
	}
	run := ""
	for _, h := range r.Headers {
		if h.Key == "run" {
			run = string(h.Value)
		}
	}
	j := m.run(failure.JobID, run)
	j.failures = append(j.failures, failure)
	return nil
}

// run returns the job's run, a new one where there was another.
func (m *Mender) run(id, run string) *job {
	j := m.jobs[id]
	if j == nil || j.run != run {
		j = &job{run: run, published: -1}
		m.jobs[id] = j
	}
	return j
}

// mend imports again what the rules can mend of a job, and submits the new jobs.
func (m *Mender) mend(ctx context.Context, id string, j *job) (made []string, err error) {
	slices.SortFunc(j.failures, func(a, b Failure) int { return cmp.Compare(a.Index, b.Index) })
	report := Report{JobID: id, Codes: make(map[string]int), Mended: make(map[string]int)}
	var users []json.RawMessage
	for _, f := range j.failures {
		report.Codes[f.Code]++
		user, err := m.Rules.Apply(f.Code, f.Message, f.User)
		if err != nil {
			return nil, fmt.Errorf("mend %s/%d: %w", id, f.Index, err)
		}
		if user == nil {
			report.Left = append(report.Left, f)
			continue
		}
		report.Mended[f.Code]++
		users = append(users, user)
	}
	const atOnce = 50_000 // FullStory takes no more
	for chunk := range slices.Chunk(users, atOnce) {
		key := fmt.Sprintf("rebound-reprocess/%s/%s/%d", id, j.run, len(report.NewJobs))
		job, err := m.importUsers(ctx, key, chunk)
		if err != nil {
			return nil, fmt.Errorf("import the mended users of job %s: %w", id, err)
		}
		report.NewJobs = append(report.NewJobs, job)
	}
	if len(report.NewJobs) > 0 {
		if err := m.submit(ctx, report.NewJobs); err != nil {
			return nil, fmt.Errorf("submit %v to rebound: %w", report.NewJobs, err)
		}
	}
	if m.Report != nil {
		m.Report(report)
	}
	return report.NewJobs, nil
}

// importUsers makes an import job:
// https://developer.fullstory.com/server/users/create-batch-import-job/
func (m *Mender) importUsers(ctx context.Context, idempotencyKey string, users []json.RawMessage) (jobID string, err error) {
	var answer struct {
		Job struct {
			ID string `json:"id"`
		} `json:"job"`
	}
	err = post(ctx, m.BaseURL+"/v2/users/batch", map[string]any{"requests": users}, &answer,
		"Authorization", "Basic "+strings.TrimPrefix(m.APIKey, "Basic "), "Idempotency-Key", idempotencyKey)
	return answer.Job.ID, err
}

func (m *Mender) submit(ctx context.Context, ids []string) error {
	return post(ctx, m.Serve+"/jobs", map[string]any{"job_ids": ids}, nil, "Authorization", "Bearer "+m.Token)
}

// post sends JSON, again where another try may help.
func post(ctx context.Context, url string, body, answer any, headers ...string) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		wait, err := postOnce(ctx, url, text, answer, headers)
		const tries = 8
		if err == nil || wait < 0 || try == tries {
			return err
		}
		select {
		case <-time.After(max(wait, time.Duration(try)*time.Second)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// postOnce returns how long to wait before another try; less than nothing where
// none will help.
func postOnce(ctx context.Context, url string, body []byte, answer any, headers []string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return -1, err
	}
	request.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode/100 == 2 {
		if answer == nil {
			return 0, nil
		}
		return -1, json.NewDecoder(response.Body).Decode(answer)
	}
	detail, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
	err = fmt.Errorf("%s answers %s: %s", url, response.Status, detail)
	if response.StatusCode == http.StatusTooManyRequests || response.StatusCode >= 500 {
		seconds, _ := time.ParseDuration(response.Header.Get("Retry-After") + "s")
		return seconds, err
	}
	return -1, err
}

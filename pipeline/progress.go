package pipeline

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// State is where a job stands.
type State string

const (
	// Running: pages are missing yet, whether a process works on them or not.
	Running State = "running"
	// Done: every failure that the API counts is published or dead-lettered.
	Done State = "done"
	// Incomplete: the last page was published, but the numbers do not agree.
	Incomplete State = "incomplete"
	// Failed: the job ended before its last page; the reason says why.
	Failed State = "failed"
)

// Progress is how far a run of a job is: the value of a progress record.
type Progress struct {
	JobID string `json:"job_id"`
	Kind  Kind   `json:"kind,omitempty"`
	// Run is 1 for the first publication of the job, one more for each replay;
	// 0 for a job that nothing is known of.
	Run   int   `json:"run"`
	State State `json:"state"`
	// NextPageToken asks for the first page that is not published yet; empty
	// before the first page and after the last.
	NextPageToken string `json:"next_page_token"`
	Pages         int64  `json:"pages"`
	// Published and DeadLettered count results; together they are the position
	// in the job of the next one.
	Published    int64 `json:"published"`
	DeadLettered int64 `json:"dead_lettered"`
	// TotalRecords is what the API's newest page counts for the whole job.
	TotalRecords int64     `json:"total_records"`
	StartedAt    time.Time `json:"started_at"`
	UpdatedAt    time.Time `json:"updated_at"`
	// Reason says why the job failed or is incomplete.
	Reason string `json:"reason,omitempty"`
	// Replays names the orders for a replay that are carried out or begun.
	Replays replays `json:"replays,omitempty"`
}

// Counts returns what is handled of how many, for a log.
func (p Progress) Counts() slog.Attr {
	return slog.Group("", "published", p.Published, "dead_lettered", p.DeadLettered, "total", p.TotalRecords)
}

// Position returns the index in the job of the first failure that is neither
// published nor dead-lettered.
func (p Progress) Position() int64 { return p.Published + p.DeadLettered }

// sameAs tells whether both say the same of the same run, whenever they were
// recorded.
func (p Progress) sameAs(q Progress) bool {
	p.StartedAt, p.UpdatedAt, q.StartedAt, q.UpdatedAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	return p == q
}

// advance goes past a published page, to the one that next asks for.
func (p *Progress) advance(next string, failures, deadLetters int64, now time.Time) {
	p.State, p.Reason = Running, ""
	p.Pages++
	p.Published += failures
	p.DeadLettered += deadLetters
	p.NextPageToken = next
	p.UpdatedAt = now
}

// count takes over what a page says of the whole job; -1 is nothing.
func (p *Progress) count(totalRecords int64) {
	if totalRecords >= 0 {
		p.TotalRecords = totalRecords
	}
}

// end settles the state after the last page.
func (p *Progress) end(now time.Time) {
	p.UpdatedAt = now
	p.NextPageToken = ""
	if p.Position() == p.TotalRecords {
		p.State, p.Reason = Done, ""
		return
	}
	p.State = Incomplete
	p.Reason = (&IncompleteError{*p}).counts()
}

// IncompleteError tells that the last page of a job was published and yet the
// API counts another number of failures.
type IncompleteError struct{ Progress Progress }

func (e *IncompleteError) counts() string {
	return fmt.Sprintf("%d failures handled (%d published, %d dead-lettered), but FullStory counts %d",
		e.Progress.Position(), e.Progress.Published, e.Progress.DeadLettered, e.Progress.TotalRecords)
}

func (e *IncompleteError) Error() string {
	return fmt.Sprintf("job %s is incomplete: %s; run it again to look for the rest, or with --replay to publish it anew",
		e.Progress.JobID, e.counts())
}

var (
	// ErrPageToken tells that the API does not take a page token (any more).
	ErrPageToken = errors.New("the page token is not accepted")
	// ErrAborted tells that nothing since the last commit counts: the job goes
	// on from its committed progress.
	ErrAborted = errors.New("the transaction was aborted")
	// ErrFenced tells that another process has taken the job over.
	ErrFenced = errors.New("another rebound process works on this job")
)

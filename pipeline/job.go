// Package pipeline is the domain of rebound: the failures of an import job, the
// messages they become, and the run that takes a job from its first page to
// its last, page by page, with the progress that covers what was published.
//
// It knows neither HTTP nor Kafka: a [Source] yields pages, a [Sink] takes
// messages.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"rebound/internal/clock"
)

// Source yields the failures of a job, a page at a time.
type Source interface {
	// Pages yields the job's pages in order, beginning with the one that
	// pageToken asks for; empty is the first. A page and all it points to are
	// valid until the next iteration. An error ends the sequence; it wraps
	// [ErrPageToken] where the API does not take pageToken.
	Pages(ctx context.Context, jobID, pageToken string) iter.Seq2[*Page, error]
}

// Sink is where messages go.
type Sink interface {
	// Begin takes the job over from whoever worked on it and returns how far
	// it is: the zero Progress where nothing is known of the job.
	Begin(ctx context.Context, jobID string) (Publication, Progress, error)
}

// Publication publishes one job. It is used by one goroutine at a time. After
// an error from Publish or Commit only Close is of use.
type Publication interface {
	// Begin says which run of the job follows; it comes first.
	Begin(run int)
	// Publish takes the messages of a page or, where that is large, of a part of
	// it. They are copied or sent when it returns, and count once they are
	// committed.
	Publish(ctx context.Context, messages []Message) error
	// Commit makes everything published since the last commit, and the
	// progress that covers it, count together. An error that wraps
	// [ErrAborted] means that none of it counts and the job is to be begun
	// again.
	Commit(ctx context.Context, progress Progress) error
	// Close gives up what is not committed and releases the job.
	Close(ctx context.Context) error
}

// Runner runs jobs. Its fields must not change while jobs run; Run may be
// called by several goroutines at once, for different jobs.
type Runner struct {
	Source Source
	Sink   Sink
	// Form is that of the messages; its Kind is that of all jobs.
	Form Form
	// Limits are the largest messages that the topics take.
	Limits Limits
	// CommitInterval is how long pages gather before they are committed
	// together. Zero commits each page.
	CommitInterval time.Duration
	// RetryTimeout is how long a job may go without a commit while its
	// transactions keep being aborted.
	RetryTimeout time.Duration
	// Transient, where set, tells which errors another try may mend. They are
	// not recorded as the job's failure, unless the order says that this was the
	// last try. Without it every error is recorded.
	Transient func(error) bool
	// ShutdownTimeout bounds the last commit once the context of Run is
	// cancelled.
	ShutdownTimeout time.Duration
	// Report, where set, is told of the progress after each page and each
	// commit. It is called by the goroutine of the job and must not block.
	Report func(Progress)
	// Observe, where set, is told what each commit has published. The same
	// holds for it.
	Observe func(Committed)
	// Log takes what happens to jobs; nil discards it.
	Log *slog.Logger
}

// Committed is what one commit published.
type Committed struct {
	// Codes counts failed users by code, Reasons dead letters by reason. Both
	// are valid until Observe returns.
	Codes, Reasons map[string]int64
	// Took is how long the commit took.
	Took time.Duration
}

// Outcome is how a run of a job ended.
type Outcome struct {
	// Progress is what was committed last.
	Progress Progress
	// Skipped: the job was published to the end earlier, nothing was done.
	Skipped bool
}

// Run publishes the job: from its first page, from where an earlier call
// stopped, or, for a replay, anew as the next run. A job that is done is left as
// it is. Where ctx carries a span, pages and commits get one of their own and
// messages the header traceparent.
//
// A cancelled context ends the run after what is complete is committed; the
// error then is the context's. Other errors: an [IncompleteError], one that
// wraps [ErrFenced], or why the source or the sink gave up. Whatever the error,
// Run may be called again and goes on without loss.
func (r *Runner) Run(ctx context.Context, order Order) (Outcome, error) {
	sinkCtx, release := r.withGrace(ctx)
	defer release()

	publication, committed, err := r.Sink.Begin(ctx, order.JobID)
	if err != nil {
		return Outcome{}, err
	}
	job := &job{Runner: r, id: order.JobID, log: r.Form.Kind.Logger(r.logger()).With("job", order.JobID), publication: publication, committed: committed}
	defer func() { job.publication.Close(sinkCtx) }()

	replay := order.Replay && !committed.Replays.has(order.Place)
	if committed.State == Done && !replay {
		return Outcome{Progress: committed, Skipped: true}, nil
	}
	job.start(ctx, replay, order.Place)
	err = job.publishAll(ctx, sinkCtx)
	switch {
	case err == nil && job.committed.State == Incomplete:
		err = &IncompleteError{job.committed}
	case err == nil, ctx.Err() != nil, errors.Is(err, ErrFenced):
	case !order.Last && r.Transient != nil && r.Transient(err):
	default:
		job.fail(sinkCtx, err)
	}
	return Outcome{Progress: job.committed}, err
}

// withGrace returns a context for the sink that outlives ctx by the shutdown
// timeout, so that what is complete can be committed.
func (r *Runner) withGrace(ctx context.Context) (context.Context, context.CancelFunc) {
	graced, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(r.ShutdownTimeout):
			cancel()
		case <-graced.Done():
		}
	})
	return graced, func() { stop(); cancel() }
}

func (r *Runner) logger() *slog.Logger {
	if r.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return r.Log
}

// job is one call of Run.
type job struct {
	*Runner
	id  string
	log *slog.Logger

	publication Publication
	run         Run
	// progress covers what is published, committed what counts; beginning is
	// the run before its first page or, where it was resumed, as it was then.
	progress, committed, beginning Progress
	// codes and reasons count what is published and not committed yet.
	codes, reasons map[string]int64
	// token asks for the page to begin with, whose first result stands at
	// index; results before position skip are published already.
	token       string
	index, skip int64
	// rewound is the position at which the job last went back to page one; -1
	// if never.
	rewound int64
}

// start settles which run this is and where it begins. A replay may be what the
// order that stands at place asks for.
func (j *job) start(ctx context.Context, replay bool, place *Place) {
	j.rewound = -1
	j.codes, j.reasons = make(map[string]int64), make(map[string]int64)
	now := time.Now().UTC()
	if j.committed.Run == 0 || replay {
		j.progress = Progress{JobID: j.id, Kind: j.Form.Kind, Run: j.committed.Run + 1, State: Running, StartedAt: now, UpdatedAt: now, Replays: j.committed.Replays}
		if replay {
			j.progress.Replays = j.progress.Replays.with(place)
		}
	} else {
		j.progress = j.committed
		j.log.Info("going on where the job stopped", "run", j.progress.Run, "position", j.progress.Position(),
			"total", j.progress.TotalRecords, "state", j.progress.State)
	}
	j.run = NewRun(j.Form, j.id, j.progress.Run)
	j.run.trace(ctx)
	j.beginning = j.progress
	j.log = j.log.With("run", j.progress.Run)
	j.publication.Begin(j.run.Number)
	j.resume()
}

// resume sets out from the progress. Where that has no token although failures
// were published, the last page was reached: only page one can tell what has
// come since.
func (j *job) resume() {
	j.token, j.index, j.skip = j.progress.NextPageToken, j.progress.Position(), j.progress.Position()
	if j.token == "" {
		j.index = 0
	}
}

// publishAll publishes what is missing and settles the state.
func (j *job) publishAll(ctx, sinkCtx context.Context) error {
	retry := backoff.ExponentialBackOff{
		InitialInterval: time.Second, MaxInterval: 15 * time.Second, Multiplier: 2, RandomizationFactor: 0.5}
	settled := time.Now()
	for {
		before := j.committed
		err := j.stream(ctx, sinkCtx)
		if j.committed != before {
			settled = time.Now()
			retry.Reset()
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrPageToken) && j.progress.Position() > j.rewound && j.token != "":
			j.log.Warn("FullStory no longer takes the page token; reading from page one again, past what is published",
				"position", j.progress.Position(), "error", err)
			j.rewound = j.progress.Position()
			j.token, j.index, j.skip = "", 0, j.progress.Position()
		case errors.Is(err, ErrAborted) && ctx.Err() == nil && time.Since(settled) < j.RetryTimeout:
			// Where only the answer to the last commit was lost, the job is done.
			j.log.Warn("nothing since the last commit counts; going on from there", "position", j.committed.Position(), "error", err)
			if err := clock.Sleep(ctx, retry.NextBackOff()); err != nil {
				return err
			}
			if err := j.takeUp(ctx, sinkCtx); err != nil || j.committed.State == Done {
				return err
			}
		default:
			return err
		}
	}
}

// takeUp begins the job anew after an aborted transaction. The lost commit may
// have succeeded all the same; progress that is neither from before nor after
// it is another process's.
func (j *job) takeUp(ctx, sinkCtx context.Context) error {
	j.publication.Close(sinkCtx)
	publication, committed, err := j.Sink.Begin(ctx, j.id)
	if err != nil {
		return err
	}
	j.publication = publication
	j.publication.Begin(j.run.Number)
	if !committed.sameAs(j.committed) && !committed.sameAs(j.progress) {
		return fmt.Errorf("job %s: %w: it is at position %d of run %d now", j.id, ErrFenced, committed.Position(), committed.Run)
	}
	if committed.Run == j.progress.Run {
		j.progress, j.committed = committed, committed
	} else {
		// Not one commit of this run was made yet.
		j.progress = j.beginning
	}
	clear(j.codes)
	clear(j.reasons)
	j.resume()
	return nil
}

// stream publishes pages from j.token on and commits them. While one page is
// published the next is fetched and transformed. Cancelling ctx ends it after the
// page that is being published.
func (j *job) stream(ctx, sinkCtx context.Context) error {
	abandoned, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	fetchCtx, stopFetching := context.WithCancel(ctx)
	defer context.AfterFunc(abandoned, stopFetching)()

	const inFlight = 3
	free, ready := make(chan *Batch, inFlight), make(chan *Batch)
	for range inFlight {
		free <- new(Batch)
	}
	var fetch errgroup.Group
	fetch.Go(func() error {
		defer close(ready)
		return j.transform(fetchCtx, abandoned.Done(), free, ready)
	})
	err := j.publish(sinkCtx, ready, free)
	abandon()
	stopFetching()
	fetchErr := fetch.Wait()
	if err != nil {
		return err
	}
	if fetchErr == nil {
		j.progress.end(time.Now().UTC())
	}
	if err := j.commit(sinkCtx); err != nil {
		return err
	}
	return fetchErr
}

// errAbandoned ends the transform of a stream whose publishing has failed.
var errAbandoned = errors.New("the stream is abandoned")

// transform turns pages into batches of messages. A page that was begun is sent
// to its end, unless the stream is abandoned.
func (j *job) transform(ctx context.Context, abandoned <-chan struct{}, free <-chan *Batch, ready chan<- *Batch) error {
	index := j.index
	for page, err := range j.Source.Pages(ctx, j.id, j.token) {
		if err != nil {
			return err
		}
		for from, whole := 0, false; !whole; {
			var batch *Batch
			select {
			case batch = <-free:
			case <-abandoned:
				return errAbandoned
			}
			from = batch.Transform(j.run, page, from, index, j.skip, j.Limits)
			whole = batch.EndsPage
			select {
			case ready <- batch:
			case <-abandoned:
				return errAbandoned
			}
		}
		if index += int64(len(page.Results)); page.Next == "" {
			return nil
		}
	}
	return ctx.Err()
}

// publish publishes batches until there are no more, and commits whole pages at
// the interval, whether the next page has come or not: an open transaction holds
// back the readers of its partitions.
func (j *job) publish(ctx context.Context, ready <-chan *Batch, free chan<- *Batch) error {
	var due <-chan time.Time
	var failures, deadLetters int64 // of the page that is being published
	midPage, overdue := false, false
	for {
		select {
		case batch, ok := <-ready:
			if !ok {
				return nil
			}
			if err := j.publication.Publish(ctx, batch.Messages); err != nil {
				return err
			}
			failures += batch.Failures
			deadLetters += batch.DeadLetters
			batch.codes.addTo(j.codes)
			batch.reasons.addTo(j.reasons)
			if midPage = !batch.EndsPage; !midPage {
				j.turnPage(batch, failures, deadLetters)
				failures, deadLetters = 0, 0
				if due == nil && !overdue && j.progress != j.committed {
					due = time.After(j.CommitInterval)
				}
			}
			free <- batch
		case <-due:
			due, overdue = nil, true
		}
		if overdue && !midPage {
			overdue = false
			if err := j.commit(ctx); err != nil {
				return err
			}
		}
	}
}

// turnPage moves the progress past a page that is published. One that was
// published before moves nothing.
func (j *job) turnPage(last *Batch, failures, deadLetters int64) {
	if last.End >= j.progress.Position() {
		j.progress.advance(last.Page.Next, failures, deadLetters, time.Now().UTC())
	}
	j.progress.count(last.Page.TotalRecords)
	j.report()
}

// commit commits what was published since the last commit, if anything.
func (j *job) commit(ctx context.Context) error {
	if j.progress == j.committed {
		return nil
	}
	ctx, span := startSpan(ctx, "commit")
	defer span.End()
	began := time.Now()
	if err := j.publication.Commit(ctx, j.progress); err != nil {
		span.RecordError(err)
		return err
	}
	j.committed = j.progress
	j.report()
	if j.Observe != nil {
		j.Observe(Committed{j.codes, j.reasons, time.Since(began)})
	}
	clear(j.codes)
	clear(j.reasons)
	return nil
}

// fail records why the job ended early, if the sink still takes it. What it
// does not record is tried again all the same when the job is run again.
func (j *job) fail(ctx context.Context, cause error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	failed := j.committed
	if failed.Run != j.run.Number {
		failed = j.beginning
	}
	failed.State, failed.Reason, failed.UpdatedAt = Failed, cause.Error(), time.Now().UTC()
	if err := j.publication.Commit(ctx, failed); err != nil {
		j.log.Warn("the job's failure could not be recorded", "error", err)
		return
	}
	j.committed = failed
}

func (j *job) report() {
	if j.Report != nil {
		j.Report(j.progress)
	}
}

package fleet

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/semaphore"

	"rebound/pipeline"
	"rebound/sink"
	"rebound/source"
)

// Scheduler carries out orders: so many jobs side by side, in the order in which
// they came, each for a slice while others wait. A job that FullStory still
// processes, that another process works on, or that fails in a way which may
// pass, is parked: it takes nobody's place and is looked at again later.
//
// Set the exported fields before Start. A Scheduler is safe for concurrent use.
type Scheduler struct {
	// Concurrency is how many jobs run side by side.
	Concurrency int
	// JobTimeout is how long a job may be parked.
	JobTimeout time.Duration
	// Run runs a job; several at once, but never two of the same job.
	Run func(context.Context, sink.Delivery) (pipeline.Outcome, error)
	// Processing asks whether FullStory still processes the job.
	Processing func(context.Context, pipeline.JobKey) (bool, error)
	// Progress returns the newest progress of a job that another process works
	// on.
	Progress func(context.Context, pipeline.JobKey) (pipeline.Progress, error)
	// Ended is told of each order that is carried out, whatever came of it.
	Ended func(Ended)
	Log   *slog.Logger

	ctx  context.Context
	work sync.WaitGroup
	room *semaphore.Weighted

	mu      sync.Mutex
	tasks   map[place]*task
	queue   []*task
	running map[pipeline.JobKey]*task
	held    bool
	review  *time.Timer // looks for slices that have ended
}

// maxTasks is how many orders one instance knows at a time. Those that come
// after them are read when one has ended.
const maxTasks = 50_000

// place is where an order stands in the jobs topic.
type place struct {
	partition int
	offset    int64
}

// task is an order that is not carried out yet.
type task struct {
	sink.Delivery
	state State
	since time.Time // when it came to be in this state
	known time.Time // when the scheduler was given it
	why   string    // it is parked
	until time.Time // it is parked

	progress   pipeline.Progress
	pagesAtRun int64 // of the progress when the slice began; -1 until it is known
	cancel     context.CancelFunc
	preempted  bool // its last slice was ended
	dropped    bool
	polls      backoff.ExponentialBackOff
	retries    backoff.ExponentialBackOff
}

// State is where an order stands.
type State string

const (
	// Queued orders wait for their turn.
	Queued State = "queued"
	// Running orders are being carried out.
	Running State = "running"
	// Parked orders wait for something else.
	Parked State = "parked"
)

// Task describes an order that is not carried out yet.
type Task struct {
	Job   pipeline.JobKey
	State State
	// Since is when it came to be in this state.
	Since time.Time
	// Why says what a parked order waits for, Until when it is looked at again.
	Why   string
	Until time.Time
	// Progress is the newest; zero before the first page.
	Progress pipeline.Progress
}

// Ended is an order that is carried out.
type Ended struct {
	Order    pipeline.Order
	Progress pipeline.Progress
	// Skipped: there was nothing to do.
	Skipped bool
	// Err is what kept it from being done.
	Err error
}

// Start makes the scheduler ready for orders. When ctx ends, so do all jobs;
// Wait waits for them.
func (s *Scheduler) Start(ctx context.Context) {
	s.mu.Lock() // the status page may ask already
	defer s.mu.Unlock()
	s.ctx = ctx
	s.room = semaphore.NewWeighted(maxTasks)
	s.tasks, s.running = make(map[place]*task), make(map[pipeline.JobKey]*task)
}

// Wait waits, after the end of Start's context, until no job runs.
func (s *Scheduler) Wait() { s.work.Wait() }

// Add takes an order in. It blocks while there are too many, until ctx ends.
func (s *Scheduler) Add(ctx context.Context, d sink.Delivery) {
	if s.room.Acquire(ctx, 1) != nil {
		return
	}
	now := time.Now()
	t := &task{Delivery: d, state: Queued, since: now, known: now,
		polls: backoff.ExponentialBackOff{
			InitialInterval: 2 * time.Second, MaxInterval: time.Minute, Multiplier: 1.5, RandomizationFactor: 0.1},
		retries: backoff.ExponentialBackOff{
			InitialInterval: 5 * time.Second, MaxInterval: 5 * time.Minute, Multiplier: 2, RandomizationFactor: 0.3},
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := place{d.Place.Partition, d.Place.Offset}
	if s.tasks[at] != nil || ctx.Err() != nil {
		s.room.Release(1)
		return
	}
	s.tasks[at] = t
	s.queueUp(t)
	s.schedule()
}

// Drop forgets the orders of a partition: another instance has them now. Those
// that run are stopped.
func (s *Scheduler) Drop(partition int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, t := range s.tasks {
		if at.partition == partition {
			t.dropped = true
			s.forget(t)
			if t.cancel != nil {
				t.cancel()
			}
		}
	}
	s.queue = slices.DeleteFunc(s.queue, func(t *task) bool { return t.dropped })
}

// Hold keeps jobs from being started, or no longer does. Those that run go on.
func (s *Scheduler) Hold(hold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = hold
	s.schedule()
}

// Report takes the progress of a job that runs.
func (s *Scheduler) Report(p pipeline.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.running[p.Key()]
	if t == nil {
		return
	}
	if t.pagesAtRun < 0 {
		t.pagesAtRun = p.Pages
	}
	t.progress = p
}

// Tasks returns orders that are not carried out yet: those that run, those that
// are parked, and those that are queued, each in the order in which they came to
// that, and of the latter two limit at most.
func (s *Scheduler) Tasks(limit int) []Task {
	s.mu.Lock()
	defer s.mu.Unlock()
	var running, parked, list []*task
	for _, t := range s.tasks {
		switch t.state {
		case Running:
			running = append(running, t)
		case Parked:
			parked = append(parked, t)
		}
	}
	bySince := func(a, b *task) int { return a.since.Compare(b.since) }
	slices.SortFunc(running, bySince)
	slices.SortFunc(parked, bySince)
	list = append(list, running...)
	list = append(list, parked[:min(len(parked), limit)]...)
	list = append(list, s.queue[:min(len(s.queue), limit)]...)
	described := make([]Task, len(list))
	for i, t := range list {
		described[i] = t.describe()
	}
	return described
}

// Task returns an order for the job that is not carried out yet.
func (s *Scheduler) Task(job pipeline.JobKey) (Task, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.running[job]; t != nil {
		return t.describe(), true
	}
	for _, t := range s.tasks {
		if t.Key() == job {
			return t.describe(), true
		}
	}
	return Task{}, false
}

func (t *task) describe() Task {
	return Task{t.Key(), t.state, t.since, t.why, t.until, t.progress}
}

// Counts returns how many orders are in each state.
func (s *Scheduler) Counts() map[State]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := map[State]int{Queued: 0, Running: 0, Parked: 0}
	for _, t := range s.tasks {
		counts[t.state]++
	}
	return counts
}

// A slice ends when another job waits and this one has had so much: what it
// has fetched ahead is fetched again, so a slice is to be worth more than that.
const (
	sliceTime  = time.Second
	slicePages = 16
	reviewTime = 500 * time.Millisecond
)

// schedule starts what can be started, and has slices ended for what cannot. It
// is called with the lock held, after everything that may change either.
func (s *Scheduler) schedule() {
	if s.held || s.ctx.Err() != nil {
		return
	}
	waiting := 0
	for i := 0; i < len(s.queue) && waiting < s.Concurrency; {
		switch t := s.queue[i]; {
		case s.running[t.Key()] != nil:
			i++
		case len(s.running) >= s.Concurrency:
			waiting++
			i++
		default:
			s.queue = slices.Delete(s.queue, i, i+1)
			s.start(t)
		}
	}
	if waiting == 0 {
		return
	}
	for _, t := range s.running {
		if t.preempted {
			waiting--
		}
	}
	for ; waiting > 0; waiting-- {
		victim := s.endOfSlice()
		if victim == nil {
			break
		}
		victim.preempted = true
		victim.cancel()
	}
	if s.review == nil {
		s.review = time.AfterFunc(reviewTime, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.review = nil
			s.schedule()
		})
	}
}

// endOfSlice returns the job whose slice is the longest and has ended.
func (s *Scheduler) endOfSlice() (longest *task) {
	for _, t := range s.running {
		if t.preempted || t.pagesAtRun < 0 || t.progress.Pages-t.pagesAtRun < slicePages || time.Since(t.since) < sliceTime {
			continue
		}
		if longest == nil || t.since.Before(longest.since) {
			longest = t
		}
	}
	return longest
}

// queueUp takes an order into the queue: behind all others or, where it has had no
// slice yet, before those that have and do not wait for long.
func (s *Scheduler) queueUp(t *task) {
	at := len(s.queue)
	if !t.preempted {
		const long = 10 * time.Second
		for at > 0 && s.queue[at-1].preempted && time.Since(s.queue[at-1].since) < long {
			at--
		}
	}
	s.queue = slices.Insert(s.queue, at, t)
}

func (s *Scheduler) start(t *task) {
	ctx, cancel := context.WithCancel(s.ctx)
	t.cancel, t.preempted, t.pagesAtRun = cancel, false, -1
	t.enter(Running, "", time.Time{})
	t.Last = s.isLast(t)
	s.running[t.Key()] = t
	s.work.Go(func() {
		outcome, err := s.Run(ctx, t.Delivery)
		cancel()
		s.settle(t, outcome, err)
	})
}

func (t *task) enter(state State, why string, until time.Time) {
	t.state, t.since, t.why, t.until = state, time.Now(), why, until
}

// isLast tells whether the order's time is up with the next try. It counts from
// when the order was given, so that a restart does not begin it anew; but an
// order that waited for an instance gets some tries all the same.
func (s *Scheduler) isLast(t *task) bool {
	const grace = 15 * time.Minute
	now := time.Now()
	return now.Sub(t.Place.Time) >= s.JobTimeout && now.Sub(t.known) >= min(grace, s.JobTimeout)
}

// settle decides what becomes of an order after a run.
func (s *Scheduler) settle(t *task, outcome pipeline.Outcome, err error) {
	s.mu.Lock()
	delete(s.running, t.Key())
	t.cancel = nil
	if outcome.Progress.JobID != "" {
		t.progress = outcome.Progress
	}
	ended := false
	switch {
	case t.dropped:
	case err == nil, errors.As(err, new(*pipeline.IncompleteError)):
		ended = true
	case s.ctx.Err() != nil:
	case errors.Is(err, pipeline.ErrFenced):
		s.park(t, "another process works on it", elsewhereTime, s.lookElsewhere)
	case t.preempted:
		t.enter(Queued, "", time.Time{})
		s.queueUp(t)
	case t.Last, source.Permanent(err):
		ended = true
	case errors.Is(err, source.ErrProcessing):
		s.park(t, source.ErrProcessing.Error(), t.polls.NextBackOff(), s.poll)
	default:
		in := t.retries.NextBackOff()
		s.Log.Warn("the job is parked; it is tried again", "job", t.JobID, "in", in.Round(time.Second).String(), "error", err)
		s.park(t, err.Error(), in, s.enqueue)
	}
	if ended {
		s.forget(t)
	}
	s.schedule()
	s.mu.Unlock()
	if ended {
		s.Ended(Ended{t.Order, t.progress, outcome.Skipped, err})
	}
}

// forget removes an order from everything but the queue.
func (s *Scheduler) forget(t *task) {
	delete(s.tasks, place{t.Place.Partition, t.Place.Offset})
	s.room.Release(1)
}

// park sets an order aside and calls then after a while.
func (s *Scheduler) park(t *task, why string, in time.Duration, then func(*task)) {
	t.enter(Parked, why, time.Now().Add(in))
	time.AfterFunc(in, func() {
		s.mu.Lock()
		gone := t.dropped || s.ctx.Err() != nil
		if !gone {
			s.work.Add(1)
		}
		s.mu.Unlock()
		if gone {
			return
		}
		defer s.work.Done()
		then(t)
	})
}

// parkAgain parks an order unless it was dropped meanwhile.
func (s *Scheduler) parkAgain(t *task, in time.Duration, then func(*task)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !t.dropped {
		since := t.since
		s.park(t, t.why, in, then)
		t.since = since
	}
}

// enqueue takes an order back into the queue.
func (s *Scheduler) enqueue(t *task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.dropped {
		return
	}
	t.enter(Queued, "", time.Time{})
	s.queueUp(t)
	s.schedule()
}

// poll asks whether FullStory still processes the job. Whatever else it answers,
// the run finds out.
func (s *Scheduler) poll(t *task) {
	processing, err := s.Processing(s.ctx, t.Key())
	if err == nil && processing && !s.isLast(t) {
		s.Log.Debug("FullStory still processes the job", "job", t.JobID)
		s.parkAgain(t, t.polls.NextBackOff(), s.poll)
		return
	}
	s.enqueue(t)
}

// How often a job is looked at that another process works on, and after how long
// without progress it is taken back.
const (
	elsewhereTime = 2 * time.Second
	staleTime     = 15 * time.Second
)

// lookElsewhere looks whether the process that has taken the job over has ended
// it, or has itself come to a halt. To take the job back sooner would have both
// fence each other for ever.
func (s *Scheduler) lookElsewhere(t *task) {
	progress, err := s.Progress(s.ctx, t.Key())
	if err == nil && progress.State == pipeline.Running && time.Since(progress.UpdatedAt) < staleTime {
		s.parkAgain(t, elsewhereTime, s.lookElsewhere)
		return
	}
	s.enqueue(t)
}

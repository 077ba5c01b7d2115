package status

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"rebound/internal/clock"
	"rebound/internal/fleet"
	"rebound/pipeline"
)

// job is a job as it is shown.
type job struct {
	JobID        string        `json:"job_id"`
	Kind         pipeline.Kind `json:"kind,omitempty"` // nothing for users
	State        string        `json:"state"`          // queued, running, parked, done, incomplete or failed
	Run          int           `json:"run,omitempty"`
	Published    int64         `json:"published"`
	DeadLettered int64         `json:"dead_lettered"`
	TotalRecords int64         `json:"total_records"`
	// Here tells that it is this instance's.
	Here             bool       `json:"here"`
	RecordsPerSecond float64    `json:"records_per_second,omitempty"`
	StartedAt        *time.Time `json:"started_at,omitempty"`
	UpdatedAt        *time.Time `json:"updated_at,omitempty"`
	// Reason says why it is parked, incomplete or failed.
	Reason string `json:"reason,omitempty"`
	// NextTry is when a parked job is looked at again.
	NextTry *time.Time `json:"next_try,omitempty"`
}

func jobOf(p pipeline.Progress) job {
	j := job{JobID: p.JobID, Kind: p.Kind, State: string(p.State)}
	j.add(p)
	return j
}

func (j *job) add(p pipeline.Progress) {
	if p.JobID == "" {
		return
	}
	j.Run, j.Published, j.DeadLettered, j.TotalRecords = p.Run, p.Published, p.DeadLettered, p.TotalRecords
	j.StartedAt, j.UpdatedAt = &p.StartedAt, &p.UpdatedAt
	if p.Reason != "" {
		j.Reason = p.Reason
	}
}

func (j *job) handled() int64 { return j.Published + j.DeadLettered }

// board knows the jobs of this instance that are not through, and of all
// instances those that changed last.
type board struct {
	fleet Fleet

	mu     sync.Mutex
	recent map[pipeline.JobKey]pipeline.Progress
	rates  map[pipeline.JobKey]*speed // of the jobs that run here
	total  speed
	kafka  error // why it does not work, as of the last look
}

// maxRecent is how many jobs are remembered besides those of this instance.
const maxRecent = 500

// readBack is how many records of each partition of the progress topic are looked
// at for them: a job that runs for long has one a commit, until they are
// compacted.
const readBack = 20_000

func newBoard(f Fleet) *board {
	return &board{fleet: f, recent: make(map[pipeline.JobKey]pipeline.Progress), rates: make(map[pipeline.JobKey]*speed)}
}

// speed works out how fast something grows, from what it is each second: the
// mean of about the last ten.
type speed struct {
	last      int64
	at        time.Time
	perSecond float64
}

func (s *speed) sample(n int64, now time.Time) {
	if !s.at.IsZero() {
		const memory = 10 // seconds
		elapsed := now.Sub(s.at).Seconds()
		if elapsed <= 0 {
			return
		}
		weight := min(elapsed/memory, 1)
		if s.perSecond == 0 {
			weight = 1
		}
		s.perSecond += weight * (float64(max(n-s.last, 0))/elapsed - s.perSecond)
	}
	s.last, s.at = n, now
}

// follow keeps the board up to date until ctx ends; look tells whether Kafka
// works.
func (b *board) follow(ctx context.Context, kafka Kafka, metrics *Metrics, look func(context.Context) error, log *slog.Logger) {
	b.followProgress(ctx, kafka, log)
	for ctx.Err() == nil {
		records, _ := metrics.totals()
		b.sample(records, time.Now())
		err := look(ctx)
		b.mu.Lock()
		b.kafka = err
		b.mu.Unlock()
		clock.Sleep(ctx, time.Second)
	}
}

// followProgress takes what a log has and gets until ctx ends.
func (b *board) followProgress(ctx context.Context, progress ProgressLog, log *slog.Logger) {
	for partition := range progress.ProgressPartitions() {
		go func() {
			for ctx.Err() == nil {
				err := progress.FollowProgress(ctx, partition, readBack, b.take)
				if ctx.Err() == nil {
					log.Warn("the progress of other instances cannot be read; trying again", "partition", partition, "error", err)
					clock.Sleep(ctx, 5*time.Second)
				}
			}
		}()
	}
}

// take remembers a progress record, and forgets the oldest when there are too
// many.
func (b *board) take(p pipeline.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.recent[p.Key()] = p
	if len(b.recent) <= 2*maxRecent {
		return
	}
	ids := make([]pipeline.JobKey, 0, len(b.recent))
	for id := range b.recent {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y pipeline.JobKey) int { return b.recent[y].UpdatedAt.Compare(b.recent[x].UpdatedAt) })
	for _, id := range ids[maxRecent:] {
		delete(b.recent, id)
	}
}

func (b *board) sample(records int64, now time.Time) {
	tasks := b.fleet.Tasks(0)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total.sample(records, now)
	running := make(map[pipeline.JobKey]*speed)
	for _, t := range tasks {
		if t.State != fleet.Running || t.Progress.JobID == "" {
			continue
		}
		s := b.rates[t.Job]
		if s == nil {
			s = new(speed)
		}
		s.sample(t.Progress.Position(), now)
		running[t.Job] = s
	}
	b.rates = running
}

// jobs returns the jobs: first this instance's, those that run at the head; then
// the others, the latest first.
func (b *board) jobs() []job {
	tasks := b.fleet.Tasks(maxRecent)
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]job, 0, len(tasks)+len(b.recent))
	here := make(map[pipeline.JobKey]bool)
	for _, t := range tasks {
		if !here[t.Job] {
			here[t.Job] = true
			list = append(list, b.describe(t))
		}
	}
	mine := len(list)
	for id, p := range b.recent {
		if !here[id] {
			list = append(list, jobOf(p))
		}
	}
	slices.SortFunc(list[mine:], func(x, y job) int {
		return cmp.Or(y.UpdatedAt.Compare(*x.UpdatedAt), cmp.Compare(x.JobID, y.JobID))
	})
	return list
}

// here returns a job of this instance.
func (b *board) here(key pipeline.JobKey) (job, bool) {
	t, ok := b.fleet.Task(key)
	if !ok {
		return job{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.describe(t), true
}

// describe is called with the lock held.
func (b *board) describe(t fleet.Task) job {
	j := job{JobID: t.Job.ID, Kind: t.Job.Kind, State: string(t.State), Here: true}
	j.add(t.Progress)
	switch {
	case t.State == fleet.Parked:
		j.Reason, j.NextTry = t.Why, &t.Until
	case j.State != string(pipeline.Failed):
		j.Reason = ""
	}
	if s := b.rates[t.Job]; s != nil {
		j.RecordsPerSecond = s.perSecond
	}
	return j
}

// brokers returns how Kafka does.
func (b *board) brokers() health {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kafka != nil {
		return health{false, b.kafka.Error()}
	}
	return health{true, "in the group, brokers answer"}
}

func (b *board) recordsPerSecond() float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total.perSecond
}

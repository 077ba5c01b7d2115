// Package fleet is rebound as a service: instances that share the jobs of a
// topic among themselves through a consumer group, and the API's rate limit with
// them.
//
// Kafka is all they need of each other. A job belongs to the instance that has
// its order's partition; the offset moves past an order when it is carried out;
// the transactional id of the job decides where two instances take it for theirs.
package fleet

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"rebound/internal/clock"
	"rebound/pipeline"
	"rebound/sink"
	"rebound/source"
)

// Options says how an instance works.
type Options struct {
	// Users publishes jobs of users; its Kafka has the jobs topic, too.
	Users Publisher
	// OpenEvents returns what publishes jobs of events, making the topics that
	// are missing or not. It is asked when the first of them comes, and again
	// after an error.
	OpenEvents func(ctx context.Context, createTopics bool) (*Publisher, error)
	// GroupID names the consumer group.
	GroupID string
	// Bucket is what all requests to the API go through. The fleet sets its
	// share: PerSecond and Burst are the whole group's.
	Bucket    *source.Bucket
	PerSecond float64
	Burst     int
	// Concurrency is how many jobs run side by side in this instance.
	Concurrency int
	// JobTimeout is how long a job may be parked.
	JobTimeout time.Duration
	// ShutdownTimeout bounds how long it takes to leave.
	ShutdownTimeout time.Duration
	// Ended is told of each order that was carried out.
	Ended func(Ended)
	// Tracer makes a span a job.
	Tracer trace.Tracer
	Log    *slog.Logger
}

// Publisher is what publishes one kind of jobs.
type Publisher struct {
	API   *source.API
	Kafka *sink.Kafka
	// Runner runs the jobs. The fleet sets its Report, Transient and
	// ShutdownTimeout.
	Runner *pipeline.Runner
}

// Fleet is one instance. Its methods are safe for concurrent use.
type Fleet struct {
	Options
	scheduler *Scheduler
	share     *share
	// members counts the group's, in its next generation, where this instance
	// leads it; else it is 0.
	members atomic.Int64

	opening sync.Mutex
	events  atomic.Pointer[Publisher] // nil until it is opened

	mu    sync.Mutex
	owned map[int]*partition
}

// partition is a partition of the jobs topic that this instance has.
type partition struct {
	offsets   offsets
	committed int64
	stop      context.CancelFunc
	stopped   chan struct{}
}

// New returns an instance; Run has it work.
func New(options Options) *Fleet {
	f := &Fleet{Options: options, owned: make(map[int]*partition)}
	f.share = &share{bucket: options.Bucket, perSecond: options.PerSecond, burst: options.Burst}
	f.scheduler = &Scheduler{
		Concurrency: options.Concurrency,
		JobTimeout:  options.JobTimeout,
		Run:         f.run,
		Processing:  f.processing,
		Progress:    f.Progress,
		Ended:       f.ended,
		Log:         options.Log,
	}
	f.employ(&f.Users)
	return f
}

// employ makes a publisher work for this instance.
func (f *Fleet) employ(p *Publisher) {
	p.Runner.Report = f.scheduler.Report
	p.Runner.Transient = func(err error) bool { return !source.Permanent(err) }
	p.Runner.ShutdownTimeout = max(f.ShutdownTimeout-leaveTime, f.ShutdownTimeout/2)
}

// publisher returns what publishes the kind.
func (f *Fleet) publisher(ctx context.Context, kind pipeline.Kind) (*Publisher, error) {
	if kind == pipeline.Users {
		return &f.Users, nil
	}
	return f.openEvents(ctx, true)
}

func (f *Fleet) openEvents(ctx context.Context, createTopics bool) (*Publisher, error) {
	if p := f.events.Load(); p != nil {
		return p, nil
	}
	f.opening.Lock()
	defer f.opening.Unlock()
	if p := f.events.Load(); p != nil {
		return p, nil
	}
	p, err := f.OpenEvents(ctx, createTopics)
	if err != nil {
		return nil, err
	}
	f.employ(p)
	f.events.Store(p)
	return p, nil
}

// PrepareEvents opens what publishes jobs of events before the first of them
// comes, if their topics are there.
func (f *Fleet) PrepareEvents(ctx context.Context) error {
	_, err := f.openEvents(ctx, false)
	if errors.Is(err, sink.ErrNoTopic) {
		return nil
	}
	return err
}

func (f *Fleet) processing(ctx context.Context, job pipeline.JobKey) (bool, error) {
	p, err := f.publisher(ctx, job.Kind)
	if err != nil {
		return false, err
	}
	return p.API.Processing(ctx, job.ID)
}

// Progress returns the newest committed progress of a job; the zero one where
// nothing is known of it, as of events before the first such job.
func (f *Fleet) Progress(ctx context.Context, job pipeline.JobKey) (pipeline.Progress, error) {
	p := &f.Users
	if job.Kind == pipeline.Events {
		if p = f.events.Load(); p == nil {
			return pipeline.Progress{}, nil
		}
	}
	return p.Kafka.Progress(ctx, job.ID)
}

// leaveTime is the part of the shutdown timeout that is kept for leaving the
// group, after the jobs have stopped.
const leaveTime = 3 * time.Second

// Run takes jobs from the group until ctx ends. It then stops taking them, has
// those that run commit what is complete, and leaves the group so that the
// others need not wait for its session to end. It fails only where no instance
// could work.
func (f *Fleet) Run(ctx context.Context) error {
	group, err := f.Users.Kafka.ConsumerGroup(kafka.ConsumerGroupConfig{
		ID:                     f.GroupID,
		GroupBalancers:         []kafka.GroupBalancer{sticky{f.Partitions, func(n int) { f.members.Store(int64(n)) }}, kafka.RangeGroupBalancer{}},
		HeartbeatInterval:      heartbeatTime,
		SessionTimeout:         sessionTime,
		RebalanceTimeout:       sessionTime,
		JoinGroupBackoff:       time.Second,
		WatchPartitionChanges:  true,
		PartitionWatchInterval: 30 * time.Second,
		StartOffset:            kafka.FirstOffset,
	})
	if err != nil {
		return err
	}
	jobs, stopJobs := context.WithCancel(context.WithoutCancel(ctx))
	defer stopJobs()
	f.scheduler.Start(jobs)
	f.scheduler.Hold(true)

	err = f.follow(ctx, jobs, group)

	f.scheduler.Hold(true)
	stopJobs()
	f.scheduler.Wait()
	left := make(chan struct{})
	go func() {
		group.Close() // commits the offsets, too
		close(left)
	}()
	select {
	case <-left:
	case <-time.After(leaveTime):
		f.Log.Warn("the group's coordinator did not answer; the other instances wait until this one's session is over", "for", sessionTime.String())
	}
	f.release(f.Partitions())
	return err
}

// How the group notices who is there. An instance that crashes is missed after
// the session time; one that leaves is not waited for.
const (
	heartbeatTime = time.Second
	sessionTime   = 10 * time.Second
)

// follow works through the generations of the group.
func (f *Fleet) follow(ctx, jobs context.Context, group *kafka.ConsumerGroup) error {
	last, failing := int32(-1), time.Time{}
	for {
		generation, err := group.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, kafka.GroupAuthorizationFailed):
			return errors.New("grant rebound's user the ACL Read on the consumer group " + f.GroupID + " (KAFKA_GROUP_ID): " + err.Error())
		case errors.Is(err, kafka.RebalanceInProgress):
			continue
		case err != nil:
			if failing.IsZero() {
				failing = time.Now()
			}
			// What passes within seconds is the ordinary course of a cluster.
			level := slog.LevelDebug
			if time.Since(failing) > sessionTime {
				level = slog.LevelWarn
			}
			f.Log.Log(ctx, level, "the consumer group cannot be joined; trying again", "group", f.GroupID,
				"failing", time.Since(failing).Round(time.Second).String(), "error", err)
			continue
		}
		failing = time.Time{}
		total := f.Users.Kafka.OrderPartitions(ctx)
		assigned := make(map[int]int64)
		for _, assignments := range generation.Assignments {
			for _, a := range assignments {
				assigned[a.ID] = a.Offset
			}
		}
		if generation.ID != last+1 {
			// Somebody else may have had them meanwhile.
			f.release(f.Partitions())
		}
		last = generation.ID
		f.Log.Info("sharing the jobs", "group", f.GroupID, "generation", generation.ID, "partitions", len(assigned), "of", total)
		f.take(jobs, assigned)
		f.share.set(len(assigned), total, generation.ID, f.members.Swap(0) == 1)
		f.scheduler.Hold(false)
		generation.Start(func(ctx context.Context) { f.keep(ctx, generation) })
	}
}

// take makes the assigned partitions, which begin at an offset each, those of
// this instance.
func (f *Fleet) take(ctx context.Context, assigned map[int]int64) {
	var lost []int
	for _, id := range f.Partitions() {
		if _, ok := assigned[id]; !ok {
			lost = append(lost, id)
		}
	}
	f.release(lost)
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, offset := range assigned {
		if f.owned[id] != nil {
			continue
		}
		ctx, stop := context.WithCancel(ctx)
		p := &partition{committed: offset, stop: stop, stopped: make(chan struct{})}
		p.offsets.settle(offset)
		f.owned[id] = p
		go func() {
			defer close(p.stopped)
			f.read(ctx, id, p, offset)
		}()
	}
}

// release gives partitions up.
func (f *Fleet) release(ids []int) {
	for _, id := range ids {
		f.mu.Lock()
		p := f.owned[id]
		f.mu.Unlock()
		p.stop()
		<-p.stopped
		f.scheduler.Drop(id)
		f.mu.Lock()
		delete(f.owned, id)
		f.mu.Unlock()
	}
}

// read delivers the orders of a partition until ctx ends.
func (f *Fleet) read(ctx context.Context, id int, p *partition, from int64) {
	for ctx.Err() == nil {
		err := f.Users.Kafka.Orders(ctx, id, from, func(d sink.Delivery) { f.deliver(ctx, p, d) }, func(below int64) {
			p.offsets.settle(below)
			from = below
		})
		if ctx.Err() == nil {
			f.Log.Warn("the jobs topic cannot be read; trying again", "partition", id, "error", err)
			clock.Sleep(ctx, heartbeatTime)
		}
	}
}

func (f *Fleet) deliver(ctx context.Context, p *partition, d sink.Delivery) {
	p.offsets.take(d.Place.Offset)
	if d.Err == nil {
		f.scheduler.Add(ctx, d)
		return
	}
	// The reason quotes the record, which may be anything, a user say: it is for
	// the dead letter, not for the log.
	f.Log.Warn("a record of the jobs topic is no order; it goes to the dead letters, whose header detail says why",
		"partition", d.Place.Partition, "offset", d.Place.Offset)
	for ctx.Err() == nil {
		err := f.Users.Kafka.Refuse(ctx, d)
		if err == nil {
			p.offsets.end(d.Place.Offset)
			return
		}
		f.Log.Warn("the dead letter cannot be written; trying again", "error", err)
		clock.Sleep(ctx, heartbeatTime)
	}
}

// run runs a job for the scheduler.
func (f *Fleet) run(ctx context.Context, d sink.Delivery) (pipeline.Outcome, error) {
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": d.Trace})
	ctx, span := f.Tracer.Start(ctx, "job", trace.WithAttributes(attribute.String("rebound.job", d.JobID)))
	defer span.End()
	p, err := f.publisher(ctx, d.Kind)
	if err != nil {
		return pipeline.Outcome{}, err
	}
	return p.Runner.Run(ctx, d.Order)
}

// ended lets the offset move past an order.
func (f *Fleet) ended(e Ended) {
	log := e.Order.Kind.Logger(f.Log).With("job", e.Order.JobID, "run", e.Progress.Run)
	counts := e.Progress.Counts()
	switch {
	case e.Err != nil:
		log.Error("the job ended early", counts, "error", e.Err)
	case e.Skipped:
		log.Info("the job was published to the end before; skipped", counts)
	default:
		log.Info("the job is done", counts)
	}
	f.mu.Lock()
	p := f.owned[e.Order.Place.Partition]
	f.mu.Unlock()
	if p != nil {
		p.offsets.end(e.Order.Place.Offset)
	}
	if f.Ended != nil {
		f.Ended(e)
	}
}

// keep holds on to what a generation gave: it renews the share of the limit
// and commits the offsets, until the generation ends.
func (f *Fleet) keep(ctx context.Context, generation *kafka.Generation) {
	ticker := time.NewTicker(heartbeatTime / 2)
	defer ticker.Stop()
	for {
		f.renew(ctx, generation)
		f.commit(generation)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			f.commit(generation)
			f.scheduler.Hold(true)
			return
		}
	}
}

// renew renews the share where the coordinator takes this instance for a member
// of the group's present generation.
func (f *Fleet) renew(ctx context.Context, generation *kafka.Generation) {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, handOver) // later it confirms nothing
	defer cancel()
	if err := f.Users.Kafka.Heartbeat(ctx, generation); err == nil {
		f.share.renew(asked)
	}
}

// commit commits how far the partitions are, where that has changed.
func (f *Fleet) commit(generation *kafka.Generation) {
	f.mu.Lock()
	moved := make(map[int]int64)
	for id, p := range f.owned {
		if at := p.offsets.position(); at != p.committed && at >= 0 {
			moved[id] = at
		}
	}
	f.mu.Unlock()
	if len(moved) == 0 {
		return
	}
	topics := make(map[string]map[int]int64)
	for topic := range generation.Assignments {
		topics[topic] = moved
	}
	if err := generation.CommitOffsets(topics); err != nil {
		f.Log.Debug("the offsets could not be committed; they are with the next commit", "error", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, at := range moved {
		if p := f.owned[id]; p != nil {
			p.committed = at
		}
	}
}

// Partitions returns the partitions of the jobs topic that this instance has.
func (f *Fleet) Partitions() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := make([]int, 0, len(f.owned))
	for id := range f.owned {
		ids = append(ids, id)
	}
	return ids
}

// Tasks returns this instance's orders; see [Scheduler.Tasks].
func (f *Fleet) Tasks(limit int) []Task { return f.scheduler.Tasks(limit) }

// Task returns this instance's order for a job.
func (f *Fleet) Task(job pipeline.JobKey) (Task, bool) { return f.scheduler.Task(job) }

// Counts returns how many orders are in each state in this instance.
func (f *Fleet) Counts() map[State]int { return f.scheduler.Counts() }

// Share returns this instance's part of the partitions, and the requests a
// second that it may send now.
func (f *Fleet) Share() (partitions, of int, perSecond float64) {
	partitions, of = f.share.partitions()
	return partitions, of, f.Bucket.Limit()
}

// Ready tells why this instance does not work: it is not in the group, or the
// brokers do not answer.
func (f *Fleet) Ready() error {
	if since := f.share.unconfirmed(); since > sessionTime {
		return errors.New("not in the consumer group " + f.GroupID)
	}
	return nil
}

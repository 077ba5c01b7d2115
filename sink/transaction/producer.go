// Package transaction is an idempotent and transactional producer on top of
// kafka-go's Client, which has the requests but not the protocol: KIP-98
// (exactly once delivery and transactional messaging).
//
// A [Producer] is opened with a transactional id. From then on it is the only
// one: earlier producers with that id are fenced and what they left open is
// aborted. Each [Batch] given to Produce is part of the current transaction,
// which begins by itself; Commit makes all of it visible to readers with
// isolation.level=read_committed, at once and exactly once. Repetitions, after
// a lost acknowledgement say, are recognized by the brokers.
//
// Without a transactional id a producer is idempotent only: each batch counts
// when Produce returns, and is in the log once, as long as the producer lives.
// Where even that is forbidden a lost acknowledgement can repeat a batch.
//
// The package knows partitions, records and the brokers' error codes; what is
// in a record is none of its business.
package transaction

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"
	"golang.org/x/sync/errgroup"

	"rebound/internal/clock"
)

var (
	// ErrFenced tells that another producer was opened with the transactional
	// id. It owns the transaction now; this one is of no more use.
	ErrFenced = errors.New("fenced by a newer producer with the same transactional id")
	// ErrTimedOut tells that a transaction was aborted because it was open for
	// longer than Options.Timeout; errors that wrap it wrap ErrAborted, too.
	ErrTimedOut = errors.New("the transaction was open for too long")
	// ErrAborted tells that the current transaction does not count and the
	// producer is of no more use: open another and begin again from what was
	// committed. After a failed Commit that is to be read back: the commit may
	// have gone through.
	ErrAborted = errors.New("the transaction is lost")
)

// DefaultTimeout is how long a transaction may be open unless the options say
// otherwise: for so long it holds back readers after a crash.
const DefaultTimeout = 30 * time.Second

// Options says how a producer works.
type Options struct {
	// TransactionalID makes the producer transactional; empty makes it
	// idempotent only.
	TransactionalID string
	// Partitions become part of each transaction with its first batch: naming
	// those that every transaction writes to in the end saves a request.
	Partitions []TopicPartition
	// Timeout is how long a transaction may be open before the brokers abort
	// it; 0 means [DefaultTimeout]. It must not be more than the brokers'
	// transaction.max.timeout.ms (15 min by default).
	Timeout time.Duration
	// RetryTimeout is how long one step may keep failing in a way that is worth
	// another try; 0 means no other try.
	RetryTimeout time.Duration
	// RequestTimeout bounds one request; 0 means 15 s.
	RequestTimeout time.Duration
	// Compressor compresses the batches; nil leaves them as they are. Producers
	// may share it.
	Compressor *Compressor
	// Log takes each failed try; nil discards it.
	Log *slog.Logger
}

// Producer produces record batches; see the package's documentation. It is not
// safe for concurrent use. After any error but a context's it is of no more use;
// after a context's too, where Produce or Commit was cut short.
type Producer struct {
	client  *kafka.Client
	options Options
	log     *slog.Logger

	id        int64
	epoch     int16
	sequences map[TopicPartition]int32
	// throttle is how long, in nanoseconds, the brokers want to be left alone.
	throttle atomic.Int64

	// partitions are those in the current transaction; begun is when its first
	// one was added.
	partitions map[TopicPartition]bool
	begun      time.Time
	// doubtful: a request of this transaction may reach a broker yet, after the
	// transaction has ended. A higher epoch makes it harmless.
	doubtful bool
	// unsettled: the markers of the last commit may not be written yet.
	unsettled bool
	broken    error
}

// Open returns a producer. For a transactional id, when Open returns every
// earlier transaction of that id is decided and marked in its partitions, and
// no earlier producer can add to them.
func Open(ctx context.Context, client *kafka.Client, options Options) (*Producer, error) {
	if options.Timeout == 0 {
		options.Timeout = DefaultTimeout
	}
	if options.RequestTimeout == 0 {
		options.RequestTimeout = 15 * time.Second
	}
	if options.Compressor == nil {
		options.Compressor = NewCompressor(compress.None)
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	p := &Producer{
		client:  client,
		options: options,
		log:     options.Log,
		id:      -1,
		epoch:   -1,
	}
	if err := p.initialize(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// initialize gets the producer id and a new epoch. Sequences count from 0 in
// each epoch.
func (p *Producer) initialize(ctx context.Context) error {
	err := p.try(ctx, "open the producer", func(ctx context.Context) error {
		response, err := p.client.InitProducerID(ctx, &kafka.InitProducerIDRequest{
			TransactionalID:      p.options.TransactionalID,
			TransactionTimeoutMs: int(p.options.Timeout.Milliseconds()),
			ProducerID:           int(p.id),
			ProducerEpoch:        int(p.epoch),
		})
		if err != nil {
			return err
		}
		if verdict, _ := judge(response.Error); verdict == restart && p.id < 0 {
			// Nothing is lost that was not begun: to begin again is this very
			// request.
			return errors.New(describe(response.Error).Error())
		}
		if response.Error != nil {
			return response.Error
		}
		p.id, p.epoch = int64(response.Producer.ProducerID), int16(response.Producer.ProducerEpoch)
		return nil
	})
	if !p.transactional() && errors.Is(err, kafka.ClusterAuthorizationFailed) {
		p.log.Warn("the brokers allow no idempotent producer; a lost acknowledgement may repeat records", "error", err)
		err = nil
	}
	p.sequences = make(map[TopicPartition]int32)
	p.partitions = make(map[TopicPartition]bool)
	p.doubtful = false
	return err
}

func (p *Producer) transactional() bool { return p.options.TransactionalID != "" }

// Produce sends batches, at most one a partition, and returns when all in-sync
// replicas of each have it. It sets each batch's Offset. The batches may be
// used again when it has returned without error.
func (p *Producer) Produce(ctx context.Context, batches ...*Batch) error {
	if p.broken != nil {
		return p.broken
	}
	p.broken = p.produce(ctx, batches)
	return p.broken
}

func (p *Producer) produce(ctx context.Context, batches []*Batch) error {
	if p.transactional() {
		if err := p.addPartitions(ctx, batches); err != nil {
			return err
		}
	}
	if err := p.options.Compressor.encode(batches, p.transactional()); err != nil {
		return err
	}
	for _, b := range batches {
		b.stamp(p.id, p.epoch, p.sequence(b.TopicPartition))
	}
	missing := batches
	err := p.try(ctx, "produce", func(ctx context.Context) (err error) {
		missing, err = p.send(ctx, missing)
		return err
	})
	if err != nil {
		return err
	}
	// A broker whose quota was exceeded reads nothing from us until then: KIP-219.
	// A request would wait there, and be taken for one that is not answered.
	if pause := time.Duration(p.throttle.Swap(0)); pause > 0 {
		p.log.Debug("the brokers' quota slows the job down", "for", pause.String())
		if err := clock.Sleep(ctx, pause); err != nil {
			return err
		}
	}
	for _, b := range batches {
		// Sequences are 31 bits wide.
		p.sequences[b.TopicPartition] = int32((int64(p.sequences[b.TopicPartition]) + int64(b.count)) & 0x7fffffff)
	}
	return nil
}

// sequence returns the number of the partition's next record in this epoch; -1
// where the brokers count none.
func (p *Producer) sequence(partition TopicPartition) int32 {
	if p.id < 0 {
		return -1
	}
	return p.sequences[partition]
}

// addPartitions makes the batches' partitions part of the transaction, which
// the first of them begins.
func (p *Producer) addPartitions(ctx context.Context, batches []*Batch) error {
	var added []TopicPartition
	for _, b := range batches {
		if !p.partitions[b.TopicPartition] {
			added = append(added, b.TopicPartition)
		}
	}
	if len(added) == 0 {
		return nil
	}
	for _, partition := range p.options.Partitions {
		if !p.partitions[partition] && !slices.Contains(added, partition) {
			added = append(added, partition)
		}
	}
	topics := make(map[string][]kafka.AddPartitionToTxn)
	for _, partition := range added {
		topics[partition.Topic] = append(topics[partition.Topic], kafka.AddPartitionToTxn{Partition: partition.Partition})
	}
	if len(p.partitions) == 0 {
		if p.doubtful {
			if err := p.initialize(ctx); err != nil {
				return err
			}
		}
		p.begun = time.Now()
	}
	err := p.try(ctx, "add partitions to the transaction", func(ctx context.Context) error {
		response, err := p.client.AddPartitionsToTxn(ctx, &kafka.AddPartitionsToTxnRequest{
			TransactionalID: p.options.TransactionalID,
			ProducerID:      int(p.id),
			ProducerEpoch:   int(p.epoch),
			Topics:          topics,
		})
		if err != nil {
			return err
		}
		// One partition's error keeps all of them out; the others say 55,
		// operation not attempted.
		const notAttempted kafka.Error = 55
		var cause error
		for topic, partitions := range response.Topics {
			for _, partition := range partitions {
				if partition.Error != nil && (cause == nil || errors.Is(cause, notAttempted)) {
					cause = fmt.Errorf("%s/%d: %w", topic, partition.Partition, partition.Error)
				}
			}
		}
		return cause
	})
	if err != nil {
		return err
	}
	for _, partition := range added {
		p.partitions[partition] = true
	}
	return nil
}

// send sends the batches once, a request a leader, and returns those that are
// to be sent again and why.
func (p *Producer) send(ctx context.Context, batches []*Batch) (missing []*Batch, err error) {
	leaders, err := p.byLeader(ctx, batches)
	if err != nil {
		return batches, err
	}
	var group errgroup.Group
	failed := make([][]*Batch, len(leaders))
	errs := make([]error, len(leaders))
	for i, batches := range leaders {
		group.Go(func() error {
			failed[i], errs[i] = p.sendTo(ctx, batches)
			return nil
		})
	}
	group.Wait()
	var worst error
	for i, err := range errs {
		missing = append(missing, failed[i]...)
		if worse(err, worst) {
			worst = err
		}
	}
	return missing, worst
}

// worse tells whether a decides rather than b: what ends the transaction before
// what is worth another try.
func worse(a, b error) bool {
	if a == nil || b == nil {
		return a != nil
	}
	return !WorthAnotherTry(a) && WorthAnotherTry(b)
}

// byLeader groups the batches by the brokers that lead their partitions, as far
// as the client knows.
func (p *Producer) byLeader(ctx context.Context, batches []*Batch) ([][]*Batch, error) {
	if len(batches) == 1 {
		return [][]*Batch{batches}, nil
	}
	var topics []string
	seen := make(map[string]bool)
	for _, b := range batches {
		if !seen[b.Topic] {
			seen[b.Topic] = true
			topics = append(topics, b.Topic)
		}
	}
	metadata, err := p.client.Metadata(ctx, &kafka.MetadataRequest{Topics: topics})
	if err != nil {
		return nil, err
	}
	leader := make(map[TopicPartition]int)
	for _, topic := range metadata.Topics {
		for _, partition := range topic.Partitions {
			leader[TopicPartition{topic.Name, partition.ID}] = partition.Leader.ID
		}
	}
	var groups [][]*Batch
	position := make(map[int]int)
	for _, b := range batches {
		id, ok := leader[b.TopicPartition]
		if !ok {
			return nil, fmt.Errorf("%s/%d: %w", b.Topic, b.Partition, kafka.UnknownTopicOrPartition)
		}
		at, ok := position[id]
		if !ok {
			at = len(groups)
			position[id] = at
			groups = append(groups, nil)
		}
		groups[at] = append(groups[at], b)
	}
	return groups, nil
}

// sendTo sends batches whose partitions one broker leads, in one request.
func (p *Producer) sendTo(ctx context.Context, batches []*Batch) (missing []*Batch, err error) {
	request := &rawproduce.Request{
		TransactionalID: p.options.TransactionalID,
		Acks:            int16(kafka.RequireAll),
		Timeout:         int32(p.options.RequestTimeout.Milliseconds()),
	}
	byPartition := make(map[TopicPartition]*Batch, len(batches))
	topicAt := make(map[string]int)
	for _, b := range batches {
		byPartition[b.TopicPartition] = b
		at, ok := topicAt[b.Topic]
		if !ok {
			at = len(request.Topics)
			topicAt[b.Topic] = at
			request.Topics = append(request.Topics, rawproduce.RequestTopic{Topic: b.Topic})
		}
		request.Topics[at].Partitions = append(request.Topics[at].Partitions, rawproduce.RequestPartition{
			Partition: int32(b.Partition),
			RecordSet: protocol.RawRecordSet{Reader: bytes.NewReader(b.frame)},
		})
	}
	answer, err := p.client.Transport.RoundTrip(ctx, p.client.Addr, request)
	if err != nil {
		for _, b := range batches {
			// An abandoned request may still read the frame.
			b.frame = bytes.Clone(b.frame)
		}
		return batches, err
	}
	response := answer.(*produce.Response)
	if pause := int64(time.Duration(response.ThrottleTimeMs) * time.Millisecond); pause > p.throttle.Load() {
		p.throttle.Store(pause) // another broker's, at the same moment, is about as long
	}
	for _, topic := range response.Topics {
		for _, partition := range topic.Partitions {
			key := TopicPartition{topic.Topic, int(partition.Partition)}
			b := byPartition[key]
			if b == nil {
				continue
			}
			if code := kafka.Error(partition.ErrorCode); partition.ErrorCode != 0 && verdicts[code].verdict != accepted {
				cause := fmt.Errorf("%s/%d: %w", key.Topic, key.Partition, code)
				if worse(cause, err) {
					err = cause
				}
				continue
			}
			b.Offset = partition.BaseOffset
			delete(byPartition, key)
		}
	}
	for _, b := range byPartition {
		missing = append(missing, b)
	}
	if err == nil && len(missing) > 0 {
		err = errors.New("the answer leaves out a partition")
	}
	return missing, err
}

// Commit commits the current transaction; nothing was produced in it: nothing
// is done. Without a transactional id there is nothing to commit.
func (p *Producer) Commit(ctx context.Context) error {
	if p.broken != nil {
		return p.broken
	}
	if len(p.partitions) == 0 {
		return nil
	}
	p.broken = p.end(ctx, true)
	p.unsettled = p.broken == nil
	return p.broken
}

// Settle waits until read_committed readers see what the last Commit has
// committed: the coordinator answers it before the markers are in the partitions.
// Asked for the same commit once more, it says CONCURRENT_TRANSACTIONS until they
// are (KIP-98). Nothing is lost where Settle fails.
func (p *Producer) Settle(ctx context.Context) error {
	if !p.unsettled || p.broken != nil || len(p.partitions) > 0 {
		return nil
	}
	err := p.try(ctx, "wait for the markers of the last commit", func(ctx context.Context) error { return p.endOnce(ctx, true) })
	p.unsettled = err != nil
	return err
}

// Abort gives up the current transaction, if one is open, so that nobody waits
// for its time-out. The producer is of no more use.
func (p *Producer) Abort(ctx context.Context) error {
	open := len(p.partitions) > 0 && !errors.Is(p.broken, ErrFenced)
	p.broken = ErrAborted
	if !open {
		return nil
	}
	return p.end(ctx, false)
}

func (p *Producer) end(ctx context.Context, commit bool) error {
	step := "commit the transaction"
	if !commit {
		step = "abort the transaction"
	}
	err := p.try(ctx, step, func(ctx context.Context) error { return p.endOnce(ctx, commit) })
	clear(p.partitions)
	return err
}

// endOnce asks once for the end of the transaction.
func (p *Producer) endOnce(ctx context.Context, commit bool) error {
	response, err := p.client.EndTxn(ctx, &kafka.EndTxnRequest{
		TransactionalID: p.options.TransactionalID,
		ProducerID:      int(p.id),
		ProducerEpoch:   int(p.epoch),
		Committed:       commit,
	})
	if err != nil {
		return err
	}
	return response.Error
}

// try does one step until it succeeds, or an error's verdict or the time ends
// it. Its error wraps ErrFenced or ErrAborted where that is the verdict.
func (p *Producer) try(ctx context.Context, step string, do func(context.Context) error) error {
	err := Retry(ctx, p.options.RetryTimeout, func(err error, failing, in time.Duration) {
		if inDoubt(err) {
			p.doubtful = true
		}
		// What passes within a second is the ordinary course of a cluster.
		level := slog.LevelDebug
		if failing > time.Second {
			level = slog.LevelWarn
		}
		p.log.Log(ctx, level, "Kafka could not take it; trying again", "step", step, "error", err,
			"failing", failing.Round(time.Millisecond).String(), "in", in.Round(time.Millisecond).String())
	}, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, p.options.RequestTimeout)
		defer cancel()
		return do(ctx)
	})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", step, describe(err))
	if ctx.Err() != nil {
		return err
	}
	switch verdict, _ := judge(err); verdict {
	case fenced:
		if p.timedOut() {
			return fmt.Errorf("%w: %w, more than %v: %w", ErrAborted, ErrTimedOut, p.options.Timeout, err)
		}
		return fmt.Errorf("%w: %w", ErrFenced, err)
	case restart:
		if p.transactional() && p.timedOut() {
			return fmt.Errorf("%w: %w, more than %v: %w", ErrAborted, ErrTimedOut, p.options.Timeout, err)
		}
		if p.transactional() && p.isFenced(ctx) {
			return fmt.Errorf("%w: %w", ErrFenced, err)
		}
		return fmt.Errorf("%w: %w", ErrAborted, err)
	}
	return err
}

// isFenced aborts the transaction, which is to be aborted anyway, and tells
// whether the answer is that another producer has the transactional id now. A
// producer whose transaction another one has aborted may hear something else
// first, and would fence that one in turn.
func (p *Producer) isFenced(ctx context.Context) bool {
	const patience = 5 * time.Second
	err := Retry(ctx, patience, func(error, time.Duration, time.Duration) {}, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, p.options.RequestTimeout)
		defer cancel()
		return p.endOnce(ctx, false)
	})
	verdict, _ := judge(err)
	return err != nil && verdict == fenced
}

// timedOut tells whether the coordinator may have aborted the transaction by
// itself, and raised the epoch with that. Until then a raised epoch is another
// producer's doing.
func (p *Producer) timedOut() bool {
	return len(p.partitions) > 0 && time.Since(p.begun) > p.options.Timeout-time.Second
}

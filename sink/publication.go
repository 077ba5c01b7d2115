package sink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"rebound/pipeline"
	"rebound/sink/transaction"
)

// How many bytes gather over all partitions of a job before they are produced:
// the job's share of what all jobs together may hold, within bounds.
const (
	leastFlush  = 128 << 10
	mostFlush   = 1 << 20
	sharedFlush = 8 << 20
)

// flushBytes returns how many bytes of the job gather now.
func (k *Kafka) flushBytes() int {
	return min(max(sharedFlush/max(int(k.publications.Load()), 1), leastFlush), mostFlush)
}

// publication publishes one job: a [pipeline.Publication]. While one round of
// batches, one a partition, is compressed and produced, the next one fills.
type publication struct {
	kafka    *Kafka
	jobID    string
	producer *transaction.Producer

	filling, sending *round
	// sent is where the round that is being produced tells its end; nil where
	// none is.
	sent       chan error
	record     transaction.Record
	flushBytes int

	run     int
	written ranges // by the run
}

// round is what is produced together.
type round struct {
	batches map[transaction.TopicPartition]*transaction.Batch
	filled  []*transaction.Batch // those of batches that hold records
	bytes   int
}

func newRound() *round {
	return &round{batches: make(map[transaction.TopicPartition]*transaction.Batch)}
}

// batch returns the round's batch for a partition.
func (r *round) batch(at transaction.TopicPartition) *transaction.Batch {
	b := r.batches[at]
	if b == nil {
		b = &transaction.Batch{TopicPartition: at}
		r.batches[at] = b
	}
	return b
}

func (r *round) add(b *transaction.Batch, record *transaction.Record) {
	if b.Len() == 0 {
		r.filled = append(r.filled, b)
	}
	before := b.Size()
	b.Append(record)
	r.bytes += b.Size() - before
}

// reset empties the round and keeps its memory.
func (r *round) reset() {
	for _, b := range r.filled {
		b.Reset()
	}
	r.filled, r.bytes = r.filled[:0], 0
}

func newPublication(k *Kafka, jobID string, producer *transaction.Producer, progress progressRecord) *publication {
	k.publications.Add(1)
	return &publication{
		kafka:    k,
		jobID:    jobID,
		producer: producer,
		filling:  newRound(),
		sending:  newRound(),
		run:      progress.Run,
		written:  progress.Written,
	}
}

// Begin says which run the messages that follow belong to.
func (p *publication) Begin(run int) {
	if run != p.run {
		p.run, p.written = run, nil
	}
}

// Publish adds messages to the current transaction. Those that do not fill a
// round are sent by a later call or by Commit.
func (p *publication) Publish(ctx context.Context, messages []pipeline.Message) error {
	p.record.Time, p.flushBytes = time.Now(), p.kafka.flushBytes()
	for i := range messages {
		if err := p.add(ctx, &messages[i]); err != nil {
			return err
		}
	}
	return nil
}

// fill makes the record that of a message; it keeps its time, and its memory.
func fill(record *transaction.Record, m *pipeline.Message) {
	record.Key, record.Value, record.Headers = m.Key, m.Value, record.Headers[:0]
	for _, h := range m.Headers {
		record.Headers = append(record.Headers, transaction.Header(h))
	}
}

func (p *publication) add(ctx context.Context, m *pipeline.Message) error {
	fill(&p.record, m)
	topic := p.kafka.nameOf(m.Topic)
	at := p.kafka.partitionOf(topic, m.Key)
	size := m.Size()
	if p.filling.bytes+size > p.flushBytes || p.filling.batch(at).Size()+size > p.kafka.layout.maxBytes[topic] {
		if err := p.flush(ctx); err != nil {
			return err
		}
	}
	p.filling.add(p.filling.batch(at), &p.record)
	return nil
}

// flush has the round that was filling produced, once the one before is through.
func (p *publication) flush(ctx context.Context) error {
	if err := p.await(); err != nil || len(p.filling.filled) == 0 {
		return err
	}
	p.filling, p.sending = p.sending, p.filling
	sent, batches := make(chan error, 1), p.sending.filled
	go func() { sent <- p.producer.Produce(ctx, batches...) }()
	p.sent = sent
	return nil
}

// await waits until nothing is being produced. After an error there is nothing
// more to wait for.
func (p *publication) await() error {
	if p.sent == nil {
		return nil
	}
	err := <-p.sent
	p.sent = nil
	if err != nil {
		return p.failed(err)
	}
	for _, batch := range p.sending.filled {
		p.written.add(batch)
	}
	p.sending.reset()
	return nil
}

// failed words the producer's error, and gives transactions more time where they
// had too little.
func (p *publication) failed(err error) error {
	if errors.Is(err, transaction.ErrTimedOut) {
		p.kafka.lengthen()
	}
	return p.kafka.jobError(p.jobID, err)
}

// Commit produces what has gathered and the progress, in this order, and
// commits both.
func (p *publication) Commit(ctx context.Context, progress pipeline.Progress) error {
	if err := p.flush(ctx); err != nil {
		return err
	}
	if err := p.await(); err != nil {
		return err
	}
	value, err := json.Marshal(progressRecord{progress, p.written})
	if err != nil {
		return fmt.Errorf("encode the progress: %w", err)
	}
	key := []byte(p.jobID)
	batch := &transaction.Batch{TopicPartition: p.kafka.partitionOf(p.kafka.options.Topics.Progress, key)}
	batch.Append(&transaction.Record{Key: key, Value: value, Time: time.Now()})
	if err := p.producer.Produce(ctx, batch); err != nil {
		return p.failed(err)
	}
	if err := p.producer.Commit(ctx); err != nil {
		return p.failed(err)
	}
	return nil
}

// Close aborts what is not committed, and waits a moment until readers see what
// is: who waits for the job's end may look at once.
func (p *publication) Close(ctx context.Context) error {
	// The producer keeps the error, and what it did not produce is aborted.
	_ = p.await()
	p.kafka.publications.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	const moment = 2 * time.Second
	settling, cancel := context.WithTimeout(ctx, moment)
	defer cancel()
	return errors.Join(p.producer.Settle(settling), p.producer.Abort(ctx))
}

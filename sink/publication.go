package sink

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	"rebound/pipeline"
	"rebound/sink/transaction"
)

// flushBytes is how many bytes gather over all partitions of a job before they
// are produced.
const flushBytes = 1 << 20

// publication publishes one job: a [pipeline.Publication].
type publication struct {
	kafka    *Kafka
	jobID    string
	producer *transaction.Producer

	batches  map[transaction.TopicPartition]*transaction.Batch
	filling  []*transaction.Batch // those of batches that hold records
	gathered int
	record   transaction.Record

	run     int
	written ranges // by the run
}

func newPublication(k *Kafka, jobID string, producer *transaction.Producer, progress progressRecord) *publication {
	return &publication{
		kafka:    k,
		jobID:    jobID,
		producer: producer,
		batches:  make(map[transaction.TopicPartition]*transaction.Batch),
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
// batch are sent by a later call or by Commit.
func (p *publication) Publish(ctx context.Context, messages []pipeline.Message) error {
	p.record.Time = time.Now()
	for i := range messages {
		if err := p.add(ctx, &messages[i]); err != nil {
			return err
		}
	}
	return nil
}

func (p *publication) add(ctx context.Context, m *pipeline.Message) error {
	topic := p.kafka.options.Topics.FailedUsers
	if m.Topic == pipeline.DeadLetters {
		topic = p.kafka.options.Topics.DeadLetters
	}
	p.record.Key, p.record.Value, p.record.Headers = m.Key, m.Value, p.record.Headers[:0]
	for _, h := range m.Headers {
		p.record.Headers = append(p.record.Headers, transaction.Header(h))
	}

	size := m.Size()
	batch := p.batch(topic, m.Key)
	if p.gathered+size > flushBytes || batch.Size()+size > p.kafka.layout.maxBytes[topic] {
		if err := p.flush(ctx); err != nil {
			return err
		}
	}
	if batch.Len() == 0 {
		p.filling = append(p.filling, batch)
	}
	before := batch.Size()
	batch.Append(&p.record)
	p.gathered += batch.Size() - before
	return nil
}

// batch returns the batch of the partition that the key belongs to.
func (p *publication) batch(topic string, key []byte) *transaction.Batch {
	partition := balancer.Balance(kafka.Message{Key: key}, p.kafka.layout.partitions[topic]...)
	at := transaction.TopicPartition{Topic: topic, Partition: partition}
	batch := p.batches[at]
	if batch == nil {
		batch = &transaction.Batch{TopicPartition: at}
		p.batches[at] = batch
	}
	return batch
}

// flush produces what has gathered.
func (p *publication) flush(ctx context.Context) error {
	if len(p.filling) == 0 {
		return nil
	}
	if err := p.producer.Produce(ctx, p.filling...); err != nil {
		return p.kafka.jobError(p.jobID, err)
	}
	for _, batch := range p.filling {
		p.written.add(batch)
		batch.Reset()
	}
	p.filling, p.gathered = p.filling[:0], 0
	return nil
}

// Commit produces what has gathered and the progress, in this order, and
// commits both.
func (p *publication) Commit(ctx context.Context, progress pipeline.Progress) error {
	if err := p.flush(ctx); err != nil {
		return err
	}
	value, err := json.Marshal(progressRecord{progress, p.written})
	if err != nil {
		return fmt.Errorf("encode the progress: %w", err)
	}
	batch := p.batch(p.kafka.options.Topics.Progress, []byte(p.jobID))
	batch.Append(&transaction.Record{Key: []byte(p.jobID), Value: value, Time: time.Now()})
	defer batch.Reset()
	if err := p.producer.Produce(ctx, batch); err != nil {
		return p.kafka.jobError(p.jobID, err)
	}
	if err := p.producer.Commit(ctx); err != nil {
		return p.kafka.jobError(p.jobID, err)
	}
	return nil
}

// Close aborts what is not committed.
func (p *publication) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return p.producer.Abort(ctx)
}

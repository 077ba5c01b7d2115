package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"rebound/pipeline"
	"rebound/sink/transaction"
)

// ReasonMalformedJob is the reason header of a dead letter that was no order.
const ReasonMalformedJob = "malformed_job"

// Delivery is a record of the jobs topic.
type Delivery struct {
	pipeline.Order
	// Trace is the record's header traceparent.
	Trace string
	// Err says why the record is no order: then there is but its Place. Give
	// the delivery to [Kafka.Refuse].
	Err error

	record record
}

// order is the value of a record in the jobs topic; a bare job id is one, too.
type order struct {
	JobID  string        `json:"job_id"`
	Kind   pipeline.Kind `json:"kind,omitempty"`
	Replay bool          `json:"replay,omitempty"`
}

func decodeOrder(value []byte) (order, error) {
	var o order
	value = bytes.TrimSpace(value)
	switch {
	case len(value) == 0:
		return o, errors.New("the record has no value")
	case value[0] == '{':
		decoder := json.NewDecoder(bytes.NewReader(value))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&o); err != nil {
			return o, fmt.Errorf(`not like {"job_id":"abd123=","replay":false}: %w`, err)
		}
		if _, err := decoder.Token(); err != io.EOF {
			return o, errors.New("something follows the JSON object")
		}
	case value[0] == '"':
		if err := json.Unmarshal(value, &o.JobID); err != nil {
			return o, fmt.Errorf("no JSON string: %w", err)
		}
	default:
		o.JobID = string(value)
	}
	return o, pipeline.CheckJobID(o.JobID)
}

// Orders delivers what stands in a partition of the jobs topic from an offset on,
// and what comes, until ctx ends or it fails. After each read it calls settled
// with an offset below which everything was delivered.
func (k *Kafka) Orders(ctx context.Context, partition int, from int64, deliver func(Delivery), settled func(below int64)) error {
	topic := k.options.Topics.Jobs
	first, end, err := k.offsets(ctx, topic, partition)
	if err != nil {
		return fmt.Errorf("read %s: %w", topic, readError(topic, err))
	}
	if from < first || from > end {
		// Nothing was read yet, retention was faster, or the topic is another.
		from = first
	}
	s := scan{next: from}
	err = s.follow(ctx, k, topic, partition, func(r *record) error {
		deliver(delivery(r, partition))
		return nil
	}, settled)
	return fmt.Errorf("read %s: %w", topic, readError(topic, err))
}

func delivery(r *record, partition int) Delivery {
	o, err := decodeOrder(r.value)
	d := Delivery{Order: pipeline.Order{JobID: o.JobID, Kind: o.Kind, Replay: o.Replay}, Err: err, record: *r}
	d.Place = &pipeline.Place{Partition: partition, Offset: r.offset, Time: r.time}
	for _, h := range r.headers {
		if h.Name == "traceparent" {
			d.Trace = string(h.Value)
		}
	}
	return d
}

// Submit appends orders to the jobs topic and returns when all in-sync replicas
// have them. An order has its job's partition, so that one job's orders are
// carried out one after the other. Where it fails some may be there all the same.
func (k *Kafka) Submit(ctx context.Context, orders []pipeline.Order) error {
	const atOnce = 5000
	for some := range slices.Chunk(orders, atOnce) {
		records := make([]pipeline.Message, len(some))
		for i, o := range some {
			value, err := json.Marshal(order{o.JobID, o.Kind, o.Replay})
			if err != nil {
				return err
			}
			records[i] = pipeline.Message{Key: []byte(o.JobID), Value: value}
		}
		if err := k.orders.write(ctx, k, k.options.Topics.Jobs, records); err != nil {
			return err
		}
	}
	return nil
}

// Refuse takes a record that is no order to the dead letter topic, with the
// reason.
func (k *Kafka) Refuse(ctx context.Context, d Delivery) error {
	topic := k.options.Topics.DeadLetters
	m := pipeline.Message{Key: d.record.key, Value: d.record.value, Headers: []pipeline.Header{
		{Name: "id", Value: fmt.Appendf(nil, "%s/%d/%d", k.options.Topics.Jobs, d.Place.Partition, d.Place.Offset)},
		{Name: "reason", Value: []byte(ReasonMalformedJob)},
		{Name: "detail", Value: []byte(d.Err.Error())},
	}}
	var parts []pipeline.Message
	for part := range m.Split(k.Limits().DeadLetter) {
		parts = append(parts, part)
	}
	return k.orders.write(ctx, k, topic, parts)
}

// orderWriter writes what is not of a job, each once as long as no write fails.
type orderWriter struct {
	mu       sync.Mutex
	producer *transaction.Producer
}

// patience is how long someone who has handed in an order is kept waiting.
const patience = 10 * time.Second

func (w *orderWriter) write(ctx context.Context, k *Kafka, topic string, records []pipeline.Message) (err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() {
		if err != nil {
			w.producer = nil
			err = fmt.Errorf("write to %s: %w", topic, explain(err))
		}
	}()
	if w.producer == nil {
		options := transaction.Options{Compressor: k.compressor, RetryTimeout: patience, Log: k.log}
		if w.producer, err = transaction.Open(ctx, k.client, options); err != nil {
			return err
		}
	}
	gathered := newRound()
	record := transaction.Record{Time: time.Now()}
	for i := range records {
		m := &records[i]
		fill(&record, m)
		batch := gathered.batch(k.partitionOf(topic, m.Key))
		if batch.Size()+m.Size() > k.layout.maxBytes[topic] {
			if err := w.producer.Produce(ctx, gathered.filled...); err != nil {
				return err
			}
			gathered.reset()
		}
		gathered.add(batch, &record)
	}
	if len(gathered.filled) == 0 {
		return nil
	}
	return w.producer.Produce(ctx, gathered.filled...)
}

// Progress returns the newest committed progress of the job; the zero one where
// nothing is known of it. Unlike Begin it takes the job over from nobody.
func (k *Kafka) Progress(ctx context.Context, jobID string) (pipeline.Progress, error) {
	progress, err := k.progressOf(ctx, jobID)
	return progress.Progress, err
}

// FollowProgress calls each for the committed progress records of a partition of
// the progress topic, so many of the newest and those that come, until ctx ends or
// it fails.
func (k *Kafka) FollowProgress(ctx context.Context, partition int, newest int64, each func(pipeline.Progress)) error {
	topic := k.options.Topics.Progress
	first, end, err := k.offsets(ctx, topic, partition)
	if err != nil {
		return fmt.Errorf("read %s: %w", topic, readError(topic, err))
	}
	s := scan{next: max(first, end-newest)}
	err = s.follow(ctx, k, topic, partition, func(r *record) error {
		// One that is none was reported to whoever asked for that job.
		if progress, err := decodeProgress(r); err == nil && progress.JobID != "" {
			each(progress.Progress)
		}
		return nil
	}, func(int64) {})
	return fmt.Errorf("read %s: %w", topic, readError(topic, err))
}

// ProgressPartitions returns how many partitions the progress topic has.
func (k *Kafka) ProgressPartitions() int { return len(k.layout.partitions[k.options.Topics.Progress]) }

// OrderPartitions asks how many partitions the jobs topic has now. Where that
// has no answer it is as many as there were.
func (k *Kafka) OrderPartitions(ctx context.Context) int {
	topic := k.options.Topics.Jobs
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	metadata, err := k.client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil || len(metadata.Topics) != 1 || len(metadata.Topics[0].Partitions) == 0 {
		return len(k.layout.partitions[topic])
	}
	return len(metadata.Topics[0].Partitions)
}

// ConsumerGroup joins the group that shares the jobs topic.
func (k *Kafka) ConsumerGroup(config kafka.ConsumerGroupConfig) (*kafka.ConsumerGroup, error) {
	config.Brokers, config.Topics = k.options.Brokers, []string{k.options.Topics.Jobs}
	config.Dialer = &kafka.Dialer{ClientID: "rebound", Timeout: 10 * time.Second, TLS: k.options.TLS, SASLMechanism: k.options.SASL}
	return kafka.NewConsumerGroup(config)
}

// Heartbeat tells the group's coordinator that the member is alive, and whether
// the coordinator still takes it for one.
func (k *Kafka) Heartbeat(ctx context.Context, g *kafka.Generation) error {
	return k.heartbeat(ctx, &kafka.HeartbeatRequest{GroupID: g.GroupID, GenerationID: g.ID, MemberID: g.MemberID})
}

// heartbeat asks the group's coordinator once. kafka-go (v0.4.51) would ask any
// broker, and reads the answer's two fields in the wrong order, the error code
// before the throttle time: so the code is in the lower half of what it takes for
// the time, and it reports no error but that of a throttle of minutes.
// https://kafka.apache.org/protocol#The_Messages_Heartbeat
func (k *Kafka) heartbeat(ctx context.Context, request *kafka.HeartbeatRequest) error {
	found, err := k.client.FindCoordinator(ctx, &kafka.FindCoordinatorRequest{Key: request.GroupID, KeyType: kafka.CoordinatorKeyTypeConsumer})
	if err == nil {
		err = found.Error
	}
	if err != nil {
		return err
	}
	if found.Coordinator == nil || found.Coordinator.Host == "" {
		return kafka.GroupCoordinatorNotAvailable
	}
	request.Addr = kafka.TCP(net.JoinHostPort(found.Coordinator.Host, strconv.Itoa(found.Coordinator.Port)))
	response, err := k.client.Heartbeat(ctx, request)
	if err != nil {
		return err
	}
	if code := int16(response.Throttle.Milliseconds()); code != 0 {
		return kafka.Error(code)
	}
	return response.Error
}

// Ping tells whether the brokers answer.
func (k *Kafka) Ping(ctx context.Context) error {
	_, err := k.client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{k.options.Topics.Progress}})
	return explain(err)
}

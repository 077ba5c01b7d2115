package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	fetchapi "github.com/segmentio/kafka-go/protocol/fetch"

	"rebound/pipeline"
)

// Committed gives back what is committed of the job's last run: a
// [pipeline.Published]. It reads only the offsets that the run wrote, and a
// little at a time. It is not safe for concurrent use.
type Committed struct {
	kafka *Kafka
	job   string
	run   string
	// streams are by topic and partition.
	streams map[pipeline.Topic]map[int]*stream
}

// Committed returns the progress of the job's last run and what was committed
// of it.
func (k *Kafka) Committed(ctx context.Context, jobID string) (pipeline.Progress, *Committed, error) {
	progress, err := k.progressOf(ctx, jobID)
	if err != nil {
		return pipeline.Progress{}, nil, err
	}
	c := &Committed{kafka: k, job: jobID, run: fmt.Sprint(progress.Run), streams: make(map[pipeline.Topic]map[int]*stream)}
	for _, written := range progress.Written {
		topic := pipeline.Failures
		switch written.Topic {
		case k.options.Topics.Failures:
		case k.options.Topics.DeadLetters:
			topic = pipeline.DeadLetters
		default:
			return pipeline.Progress{}, nil, fmt.Errorf("job %s: its last run was published to topic %s: set KAFKA_TOPIC and KAFKA_DEAD_LETTER_TOPIC to where it went",
				jobID, written.Topic)
		}
		if c.streams[topic] == nil {
			c.streams[topic] = make(map[int]*stream)
		}
		c.streams[topic][written.Partition] = &stream{committed: c, topic: topic, offsetRange: written, next: written.First}
	}
	return progress.Progress, c, nil
}

// Peek is part of [pipeline.Published].
func (c *Committed) Peek(ctx context.Context, topic pipeline.Topic, key []byte) (*pipeline.Message, error) {
	s := c.stream(topic, key)
	if s == nil {
		return nil, nil
	}
	return s.peek(ctx)
}

// Advance is part of [pipeline.Published].
func (c *Committed) Advance(topic pipeline.Topic, key []byte) {
	if s := c.stream(topic, key); s != nil {
		s.at++
	}
}

func (c *Committed) stream(topic pipeline.Topic, key []byte) *stream {
	return c.streams[topic][c.kafka.partitionOf(c.kafka.nameOf(topic), key).Partition]
}

// Rest is part of [pipeline.Published].
func (c *Committed) Rest(ctx context.Context, each func(*pipeline.Message)) error {
	for _, partitions := range c.streams {
		for _, s := range partitions {
			for {
				m, err := s.peek(ctx)
				if err != nil {
					return err
				}
				if m == nil {
					break
				}
				each(m)
				s.at++
			}
		}
	}
	return nil
}

// stream reads a range of a partition as a read_committed consumer does.
type stream struct {
	committed *Committed
	topic     pipeline.Topic
	offsetRange

	next     int64
	messages []pipeline.Message
	at       int // the next of messages
}

func (s *stream) peek(ctx context.Context) (*pipeline.Message, error) {
	for s.at >= len(s.messages) {
		if s.next >= s.End {
			return nil, nil
		}
		s.messages, s.at = s.messages[:0], 0
		err := s.fetch(ctx)
		if first, moved := s.committed.kafka.movedBegin(ctx, s.Topic, s.Partition, s.next, err); moved {
			s.next = first
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s, partition %d, from offset %d on: %w", s.Topic, s.Partition, s.next, readError(s.Topic, err))
		}
	}
	return &s.messages[s.at], nil
}

// A stream holds this much of each partition, compressed.
const streamBytes = 256 << 10

var errHeldBack = errors.New("a transaction of another job is still open before the end of this run")

// fetch reads on. What comes after the last stable offset is waited for: an open
// transaction ends within its time-out.
func (s *stream) fetch(ctx context.Context) error {
	k := s.committed.kafka
	const readCommitted = 1
	request := &fetchapi.Request{
		ReplicaID:      -1,
		MaxWaitTime:    500,
		MinBytes:       1,
		MaxBytes:       streamBytes,
		IsolationLevel: readCommitted,
		SessionID:      -1,
		SessionEpoch:   -1,
		Topics: []fetchapi.RequestTopic{{Topic: s.Topic, Partitions: []fetchapi.RequestPartition{{
			Partition: int32(s.Partition), CurrentLeaderEpoch: -1, FetchOffset: s.next, LogStartOffset: -1, PartitionMaxBytes: streamBytes,
		}}}},
	}
	return k.retry(ctx, "read "+s.Topic, func(ctx context.Context) error {
		answer, err := k.client.Transport.RoundTrip(ctx, k.client.Addr, request)
		if err != nil {
			return err
		}
		response := answer.(*fetchapi.Response)
		if response.ErrorCode != 0 {
			return kafka.Error(response.ErrorCode)
		}
		if len(response.Topics) != 1 || len(response.Topics[0].Partitions) != 1 {
			return errors.New("the answer leaves out the partition")
		}
		partition := &response.Topics[0].Partitions[0]
		if partition.ErrorCode != 0 {
			return kafka.Error(partition.ErrorCode)
		}
		records, ok := partition.RecordSet.Records.(*protocol.RecordStream)
		if !ok || len(records.Records) == 0 {
			if partition.LastStableOffset > s.next {
				s.next++ // a batch that compaction has emptied
				return nil
			}
			return errHeldBack
		}
		return s.take(records, partition.AbortedTransactions)
	})
}

// take keeps the run's messages of what was fetched. The broker says which
// transactions that it shows were aborted: each from its first offset to its
// marker.
func (s *stream) take(records *protocol.RecordStream, aborted []fetchapi.ResponseTransaction) error {
	slices.SortFunc(aborted, func(a, b fetchapi.ResponseTransaction) int { return cmp.Compare(a.FirstOffset, b.FirstOffset) })
	inAborted := make(map[int64]bool) // by producer id
	next := s.next
	for _, batch := range records.Records {
		switch batch := batch.(type) {
		case *protocol.ControlBatch:
			next = max(next, batch.BaseOffset+1)
			delete(inAborted, batch.ProducerID)
		case *protocol.RecordBatch:
			next = max(next, batch.BaseOffset+1)
			for len(aborted) > 0 && aborted[0].FirstOffset <= batch.BaseOffset {
				inAborted[aborted[0].ProducerID] = true
				aborted = aborted[1:]
			}
			end, err := s.takeBatch(batch, batch.Attributes.Transactional() && inAborted[batch.ProducerID])
			if err != nil {
				return err
			}
			next = max(next, end)
		}
	}
	s.next = max(next, s.next+1)
	return nil
}

func (s *stream) takeBatch(batch *protocol.RecordBatch, skip bool) (end int64, err error) {
	for {
		r, err := batch.ReadRecord()
		if errors.Is(err, io.EOF) {
			return end, nil
		}
		if err != nil {
			return 0, err
		}
		end = r.Offset + 1
		if skip || r.Offset < s.next || r.Offset >= s.End {
			continue
		}
		read, err := readRecord(r)
		if err != nil {
			return 0, err
		}
		m := pipeline.Message{Topic: s.topic, Key: read.key, Value: read.value, Headers: read.headers}
		if s.isOfRun(&m) {
			s.messages = append(s.messages, m)
		}
	}
}

func (s *stream) isOfRun(m *pipeline.Message) bool {
	job, run := false, false
	for _, h := range m.Headers {
		switch h.Name {
		case "job":
			job = string(h.Value) == s.committed.job
		case "run":
			run = string(h.Value) == s.committed.run
		}
	}
	return job && run
}

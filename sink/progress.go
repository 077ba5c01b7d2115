package sink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"rebound/pipeline"
)

// fetchBytes is how much of a partition is fetched at once.
const fetchBytes = 4 << 20

// readProgress returns the newest progress of the job that was committed.
//
// It must come after the job's producer was opened: then every transaction of
// the job is decided and its marker is in the log. It reads up to the end of
// the partition, not to the last stable offset, which another job's open
// transaction holds back, and works out itself what was committed.
func (k *Kafka) readProgress(ctx context.Context, jobID string) (pipeline.Progress, error) {
	var newest pipeline.Progress
	topic := k.options.Topics.Progress
	partition := kafka.Murmur2Balancer{Consistent: true}.Balance(kafka.Message{Key: []byte(jobID)}, k.layout.partitions[topic]...)
	err := k.readCommitted(ctx, topic, partition, func(r *record) error {
		if string(r.key) != jobID {
			return nil
		}
		if r.value == nil {
			newest = pipeline.Progress{}
			return nil
		}
		var progress pipeline.Progress
		if err := json.Unmarshal(r.value, &progress); err != nil {
			return fmt.Errorf("the record at offset %d of %s/%d is no progress: %w", r.offset, topic, partition, err)
		}
		newest = progress
		return nil
	})
	return newest, err
}

// record is a record that was read back.
type record struct {
	offset     int64
	key, value []byte
}

// readCommitted calls each for every committed record of the partition, in the
// order of their commits, up to what is the partition's end now. Records of a
// transaction that is open yet are left out.
func (k *Kafka) readCommitted(ctx context.Context, topic string, partition int, each func(*record) error) error {
	offset, end, err := k.offsets(ctx, topic, partition)
	if err != nil {
		return err
	}
	// What transactions wrote waits for its marker, by producer.
	open := make(map[int64][]record)
	for offset < end {
		var fetched *kafka.FetchResponse
		err := k.retry(ctx, "read "+topic, func(ctx context.Context) (err error) {
			fetched, err = k.client.Fetch(ctx, &kafka.FetchRequest{
				Topic: topic, Partition: partition, Offset: offset, MinBytes: 1, MaxBytes: fetchBytes})
			if err == nil {
				err = fetched.Error
			}
			return err
		})
		if err != nil {
			return err
		}
		next, err := readBatches(fetched.Records, offset, open, each)
		if err != nil {
			return err
		}
		// A batch that compaction has emptied shows no offset to go on from.
		offset = max(next, offset+1)
	}
	return nil
}

// readBatches reads what a fetch returned and returns the offset that follows.
func readBatches(fetched kafka.RecordReader, from int64, open map[int64][]record, each func(*record) error) (next int64, err error) {
	stream, ok := fetched.(*protocol.RecordStream)
	if !ok {
		return from, nil
	}
	for _, batch := range stream.Records {
		switch batch := batch.(type) {
		case *protocol.ControlBatch:
			next = max(next, batch.BaseOffset+1)
			if batch.BaseOffset < from {
				continue
			}
			control, err := batch.ReadControlRecord()
			if errors.Is(err, io.EOF) {
				continue
			}
			if err != nil {
				return 0, err
			}
			const abort, commit = 0, 1
			switch control.Type {
			case commit:
				for i := range open[batch.ProducerID] {
					if err := each(&open[batch.ProducerID][i]); err != nil {
						return 0, err
					}
				}
				delete(open, batch.ProducerID)
			case abort:
				delete(open, batch.ProducerID)
			}
		case *protocol.RecordBatch:
			next = max(next, batch.BaseOffset+1)
			for {
				r, err := batch.ReadRecord()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return 0, err
				}
				next = max(next, r.Offset+1)
				if r.Offset < from {
					continue
				}
				read := record{offset: r.Offset}
				if read.key, err = protocol.ReadAll(r.Key); err != nil {
					return 0, err
				}
				if read.value, err = protocol.ReadAll(r.Value); err != nil {
					return 0, err
				}
				if batch.Attributes.Transactional() {
					open[batch.ProducerID] = append(open[batch.ProducerID], read)
				} else if err := each(&read); err != nil {
					return 0, err
				}
			}
		}
	}
	return next, nil
}

// offsets returns the partition's first offset and the one after its last.
func (k *Kafka) offsets(ctx context.Context, topic string, partition int) (first, end int64, err error) {
	err = k.retry(ctx, "find the end of "+topic, func(ctx context.Context) error {
		response, err := k.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{
			Topics: map[string][]kafka.OffsetRequest{topic: {kafka.FirstOffsetOf(partition), kafka.LastOffsetOf(partition)}},
		})
		if err != nil {
			return err
		}
		for _, p := range response.Topics[topic] {
			if p.Error != nil {
				return p.Error
			}
			first, end = p.FirstOffset, p.LastOffset
		}
		return nil
	})
	return first, end, err
}

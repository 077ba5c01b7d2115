package sink

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"rebound/pipeline"
)

// record is a record that was read back.
type record struct {
	offset     int64
	time       time.Time
	key, value []byte
	headers    []pipeline.Header
}

// scan reads a partition's committed records. It goes on to the end of the
// partition and works out by itself what was committed: a read_committed fetch
// stops at the last stable offset, which anybody's open transaction holds back.
// https://kafka.apache.org/documentation/#controlbatch
//
// The zero value begins at the partition's first record.
type scan struct {
	// next is the offset to go on from.
	next int64
	// open holds what transactions wrote whose marker has not come yet, by
	// producer id.
	open map[int64][]record
}

// fetchBytes is how much of a partition is fetched at once.
const fetchBytes = 1 << 20

// readTo calls each for every record committed below end, in the order of the
// commits. Records of a transaction that is open yet are kept for a later call.
func (s *scan) readTo(ctx context.Context, k *Kafka, topic string, partition int, end int64, each func(*record) error) error {
	for s.next < end {
		if err := s.readOn(ctx, k, topic, partition, each); err != nil {
			return err
		}
	}
	return nil
}

// follow calls each for every record committed from s.next on, as they come,
// until ctx ends. After each read it calls settled with an offset below which
// nothing is to come any more: a transaction that is open may put records in
// between.
func (s *scan) follow(ctx context.Context, k *Kafka, topic string, partition int, each func(*record) error, settled func(below int64)) error {
	for {
		if err := s.readOn(ctx, k, topic, partition, each); err != nil {
			return err
		}
		below := s.next
		for _, records := range s.open {
			below = min(below, records[0].offset)
		}
		settled(below)
	}
}

// readOn reads once from s.next on, and waits a second for what is not there yet.
func (s *scan) readOn(ctx context.Context, k *Kafka, topic string, partition int, each func(*record) error) error {
	if s.open == nil {
		s.open = make(map[int64][]record)
	}
	fetched, err := k.fetch(ctx, topic, partition, s.next, time.Second)
	if first, moved := k.movedBegin(ctx, topic, partition, s.next, err); moved {
		s.next = first
		return nil
	}
	if err != nil {
		return err
	}
	next, err := s.readBatches(fetched.Records, each)
	if err != nil {
		return err
	}
	if next <= s.next && fetched.HighWatermark > s.next {
		next = s.next + 1 // a batch that compaction has emptied shows no offset to go on from
	}
	s.next = max(next, s.next)
	return nil
}

// movedBegin tells whether a fetch failed because the partition begins after its
// offset now, and where: retention goes on while we read.
func (k *Kafka) movedBegin(ctx context.Context, topic string, partition int, offset int64, failure error) (first int64, moved bool) {
	if !errors.Is(failure, kafka.OffsetOutOfRange) {
		return 0, false
	}
	first, _, err := k.offsets(ctx, topic, partition)
	return first, err == nil && first > offset
}

// fetch reads from an offset on, and waits a while where nothing is there yet.
func (k *Kafka) fetch(ctx context.Context, topic string, partition int, offset int64, wait time.Duration) (fetched *kafka.FetchResponse, err error) {
	err = k.retry(ctx, "read "+topic, func(ctx context.Context) (err error) {
		fetched, err = k.client.Fetch(ctx, &kafka.FetchRequest{
			Topic: topic, Partition: partition, Offset: offset, MinBytes: 1, MaxBytes: fetchBytes, MaxWait: wait})
		if err == nil {
			err = fetched.Error
		}
		return err
	})
	return fetched, err
}

// readBatches reads what a fetch returned and returns the offset that follows.
func (s *scan) readBatches(fetched kafka.RecordReader, each func(*record) error) (next int64, err error) {
	stream, ok := fetched.(*protocol.RecordStream)
	if !ok {
		return s.next, nil
	}
	for _, batch := range stream.Records {
		switch batch := batch.(type) {
		case *protocol.ControlBatch:
			next = max(next, batch.BaseOffset+1)
			if batch.BaseOffset < s.next {
				continue
			}
			if err := s.settle(batch, each); err != nil {
				return 0, err
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
				if r.Offset < s.next {
					continue
				}
				read, err := readRecord(r)
				if err != nil {
					return 0, err
				}
				if batch.Attributes.Transactional() {
					s.open[batch.ProducerID] = append(s.open[batch.ProducerID], read)
				} else if err := each(&read); err != nil {
					return 0, err
				}
			}
		}
	}
	return next, nil
}

// settle takes a marker: what its producer wrote counts, or does not.
func (s *scan) settle(marker *protocol.ControlBatch, each func(*record) error) error {
	control, err := marker.ReadControlRecord()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	const abort, commit = 0, 1
	records := s.open[marker.ProducerID]
	switch control.Type {
	case abort:
		delete(s.open, marker.ProducerID)
	case commit:
		delete(s.open, marker.ProducerID)
		for i := range records {
			if err := each(&records[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func readRecord(r *protocol.Record) (record, error) {
	read := record{offset: r.Offset, time: r.Time}
	var err error
	if read.key, err = protocol.ReadAll(r.Key); err != nil {
		return read, err
	}
	if read.value, err = protocol.ReadAll(r.Value); err != nil {
		return read, err
	}
	for _, h := range r.Headers {
		read.headers = append(read.headers, pipeline.Header{Name: h.Key, Value: h.Value})
	}
	return read, nil
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

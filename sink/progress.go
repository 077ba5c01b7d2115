package sink

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"rebound/pipeline"
	"rebound/sink/transaction"
)

// progressRecord is the value of a progress record: the progress, and where in
// the topics its run has written.
type progressRecord struct {
	pipeline.Progress
	Written ranges `json:"written,omitempty"`
}

// ranges says which offsets of which partition a run wrote: all of its messages
// are in them, and other jobs' in between.
type ranges []offsetRange

type offsetRange struct {
	Topic     string `json:"topic"`
	Partition int    `json:"partition"`
	// First is the offset of the run's first message, End the one after its
	// last.
	First int64 `json:"first"`
	End   int64 `json:"end"`
}

// add takes in a batch that was written.
func (r *ranges) add(b *transaction.Batch) {
	end := b.Offset + int64(b.Len())
	i, found := slices.BinarySearchFunc(*r, b.TopicPartition, func(o offsetRange, at transaction.TopicPartition) int {
		return cmp.Or(cmp.Compare(o.Topic, at.Topic), cmp.Compare(o.Partition, at.Partition))
	})
	if !found {
		*r = slices.Insert(*r, i, offsetRange{b.Topic, b.Partition, b.Offset, end})
		return
	}
	(*r)[i].First = min((*r)[i].First, b.Offset)
	(*r)[i].End = max((*r)[i].End, end)
}

// progressLog knows where in a partition of the progress topic each job's newest
// committed record is. It reads on from where it was each time, so that a
// thousand jobs read the partition once, and remembers offsets, not records.
type progressLog struct {
	partition int

	mu     sync.Mutex
	scan   scan
	seed   maphash.Seed
	newest map[uint64]int64 // by the hash of the job id
}

// find returns the newest committed record of the job.
//
// It must come after the job's producer was opened: from then on every
// transaction of the job is decided and its marker is in the log.
func (l *progressLog) find(ctx context.Context, k *Kafka, jobID string) (progressRecord, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	topic := k.options.Topics.Progress
	first, end, err := k.offsets(ctx, topic, l.partition)
	if err != nil {
		return progressRecord{}, err
	}
	if l.newest == nil || end < l.scan.next {
		// The first time, or the topic was made anew.
		l.scan, l.seed, l.newest = scan{next: first}, maphash.MakeSeed(), make(map[uint64]int64)
	}
	l.scan.next = max(l.scan.next, first)
	err = l.scan.readTo(ctx, k, topic, l.partition, end, func(r *record) error {
		// A tombstone may stand between a record and the marker that makes it
		// count: it is the newer one.
		at := maphash.Bytes(l.seed, r.key)
		l.newest[at] = max(l.newest[at], r.offset)
		return nil
	})
	if err != nil {
		return progressRecord{}, err
	}
	offset, known := l.newest[maphash.String(l.seed, jobID)]
	if !known {
		return progressRecord{}, nil
	}
	return l.read(ctx, k, offset, jobID)
}

// read reads the record at the offset, which was committed.
func (l *progressLog) read(ctx context.Context, k *Kafka, offset int64, jobID string) (progressRecord, error) {
	fetched, err := k.fetch(ctx, k.options.Topics.Progress, l.partition, offset, time.Second)
	if err != nil {
		return progressRecord{}, err
	}
	var found *record
	one := scan{next: offset, open: make(map[int64][]record)}
	take := func(r *record) error {
		if r.offset == offset && string(r.key) == jobID {
			found = r
		}
		return nil
	}
	if _, err := one.readBatches(fetched.Records, take); err != nil {
		return progressRecord{}, err
	}
	for _, records := range one.open {
		for i := range records {
			take(&records[i])
		}
	}
	if found == nil {
		return progressRecord{}, fmt.Errorf("offset %d of partition %d does not hold the job's progress any more; run again", offset, l.partition)
	}
	return decodeProgress(found)
}

func decodeProgress(r *record) (progressRecord, error) {
	var progress progressRecord
	if len(r.value) == 0 {
		return progress, nil // a tombstone: somebody wants the job forgotten
	}
	if err := json.Unmarshal(r.value, &progress); err != nil {
		return progress, fmt.Errorf("the record at offset %d, key %q, is no progress: %w", r.offset, r.key, err)
	}
	if progress.JobID != string(r.key) {
		return progress, fmt.Errorf("the record at offset %d, key %q, is the progress of job %q", r.offset, r.key, progress.JobID)
	}
	return progress, nil
}

// progressOf returns the job's newest committed progress; the zero one where
// nothing is known of the job.
func (k *Kafka) progressOf(ctx context.Context, jobID string) (progressRecord, error) {
	at := k.partitionOf(k.options.Topics.Progress, []byte(jobID))
	progress, err := k.progress[at.Partition].find(ctx, k, jobID)
	if err != nil {
		return progress, fmt.Errorf("job %s: read its progress from %s: %w", jobID, at.Topic, readError(at.Topic, err))
	}
	return progress, nil
}

// Jobs calls each for the newest committed progress of every job that the
// progress topic knows, in no particular order. The second argument is the
// record's value as it stands in the topic. A record that is no progress is
// reported by an error after all others were read.
func (k *Kafka) Jobs(ctx context.Context, each func(pipeline.Progress, []byte) error) error {
	topic := k.options.Topics.Progress
	var broken []error
	for _, partition := range k.layout.partitions[topic] {
		first, end, err := k.offsets(ctx, topic, partition)
		if err != nil {
			return fmt.Errorf("read %s: %w", topic, readError(topic, err))
		}
		newest := make(map[string]record)
		s := scan{next: first}
		err = s.readTo(ctx, k, topic, partition, end, func(r *record) error {
			if before, known := newest[string(r.key)]; !known || before.offset < r.offset {
				newest[string(r.key)] = *r
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read %s: %w", topic, readError(topic, err))
		}
		for _, r := range newest {
			progress, err := decodeProgress(&r)
			if err != nil {
				broken = append(broken, fmt.Errorf("%s, partition %d: %w", topic, partition, err))
				continue
			}
			if progress.JobID == "" {
				continue
			}
			if err := each(progress.Progress, r.value); err != nil {
				return err
			}
		}
	}
	return errors.Join(broken...)
}

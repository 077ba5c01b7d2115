package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/twmb/franz-go/pkg/kfake"

	"rebound/pipeline"
	"rebound/sink/transaction"
)

// openSink opens a sink with topics of its own, of one partition each so that
// everything meets there, on the brokers that KAFKA_BROKERS names or on embedded
// ones.
func openSink(t *testing.T) (*Kafka, *kfake.Cluster) {
	t.Helper()
	var fake *kfake.Cluster
	brokers := strings.Split(os.Getenv("KAFKA_BROKERS"), ",")
	if brokers[0] == "" {
		var err error
		if fake, err = kfake.NewCluster(kfake.NumBrokers(1)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(fake.Close)
		brokers = fake.ListenAddrs()
	}
	name := fmt.Sprintf("sink-%d", time.Now().UnixNano())
	k, err := Open(t.Context(), Options{
		Brokers: brokers, Topics: Topics{name, name + ".dead-letter", name + ".progress", name + ".jobs"}, ExactlyOnce: true,
		CreateTopics: true, Partitions: 1, Replicas: -1, RetryTimeout: time.Minute, Compression: compress.Lz4,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k, fake
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// commit commits progress of the job as rebound does.
func commit(t *testing.T, k *Kafka, jobID string, published int64) {
	t.Helper()
	publication, _, err := k.Begin(t.Context(), jobID)
	must(t, err)
	publication.Begin(1)
	must(t, publication.Commit(t.Context(), progressAt(jobID, published)))
}

func progressAt(jobID string, published int64) pipeline.Progress {
	return pipeline.Progress{JobID: jobID, Run: 1, State: pipeline.Running, Published: published, UpdatedAt: time.Now().UTC()}
}

func mustBeAt(t *testing.T, k *Kafka, jobID string, published int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // less than an open transaction's time-out
	defer cancel()
	_, progress, err := k.Begin(ctx, jobID)
	must(t, err)
	if progress.Published != published {
		t.Errorf("job %s is at %d, want %d", jobID, progress.Published, published)
	}
}

// write writes a progress record of the job without committing it.
func write(t *testing.T, k *Kafka, jobID string, published int64) *transaction.Producer {
	t.Helper()
	p, err := transaction.Open(t.Context(), k.client, transaction.Options{
		TransactionalID: TransactionalID(k.options.Topics.Progress, jobID), RetryTimeout: time.Minute})
	must(t, err)
	must(t, p.Produce(t.Context(), progressBatch(t, k, progressAt(jobID, published))))
	return p
}

func progressBatch(t *testing.T, k *Kafka, list ...pipeline.Progress) *transaction.Batch {
	t.Helper()
	b := &transaction.Batch{TopicPartition: transaction.TopicPartition{Topic: k.options.Topics.Progress}}
	for _, progress := range list {
		value, err := json.Marshal(progress)
		must(t, err)
		b.Append(&transaction.Record{Key: []byte(progress.JobID), Value: value, Time: time.Now()})
	}
	return b
}

// readingAnew returns the sink as a process has it that has not read the progress
// topic yet.
func readingAnew(k *Kafka) *Kafka {
	return &Kafka{options: k.options, log: k.log, client: k.client, transport: k.transport, layout: k.layout,
		progress: map[int]*progressLog{0: {partition: 0}}}
}

func TestAnUnknownJobHasNoProgress(t *testing.T) {
	k, _ := openSink(t)
	mustBeAt(t, k, "unknown", 0)
}

func TestAnAbortedProgressRecordDoesNotCount(t *testing.T) {
	k, _ := openSink(t)
	commit(t, k, "job", 10)
	must(t, write(t, k, "job", 99).Abort(t.Context()))
	mustBeAt(t, k, "job", 10)
	commit(t, k, "job", 20)
	mustBeAt(t, k, "job", 20)
}

func TestProgressThatACrashLeftOpenDoesNotCount(t *testing.T) {
	k, _ := openSink(t)
	commit(t, k, "job", 10)
	write(t, k, "job", 99) // and dies
	mustBeAt(t, k, "job", 10)
}

func TestAnotherJobsOpenTransactionHidesNothing(t *testing.T) {
	k, _ := openSink(t)
	commit(t, k, "job", 10)
	other := write(t, k, "other", 5)
	commit(t, k, "job", 20) // after the other's record, before its marker
	mustBeAt(t, k, "job", 20)
	must(t, other.Commit(t.Context()))
	mustBeAt(t, k, "other", 5)
	mustBeAt(t, k, "job", 20)

	// And for a process that reads the topic for the first time.
	left := write(t, k, "third", 7)
	commit(t, k, "job", 30)
	fresh := readingAnew(k)
	mustBeAt(t, fresh, "job", 30)
	jobs := make(map[string]int64)
	must(t, fresh.Jobs(t.Context(), func(p pipeline.Progress, _ []byte) error {
		jobs[p.JobID] = p.Published
		return nil
	}))
	if len(jobs) != 2 || jobs["job"] != 30 || jobs["other"] != 5 {
		t.Errorf("jobs are %v", jobs)
	}
	must(t, left.Abort(t.Context()))
}

func TestACompactedProgressTopicIsReadRight(t *testing.T) {
	k, fake := openSink(t)
	if fake == nil {
		compactSoon(t, k)
	}
	for i := range int64(20) {
		commit(t, k, "job", i)
		commit(t, k, fmt.Sprint("other", i), i)
		must(t, write(t, k, "aborted", i).Abort(t.Context()))
	}
	if fake != nil {
		fake.Compact()
	} else {
		awaitCompaction(t, k)
	}
	mustBeAt(t, k, "job", 19) // the offsets it remembers are gone
	fresh := readingAnew(k)
	mustBeAt(t, fresh, "job", 19)
	mustBeAt(t, fresh, "other7", 7)
	mustBeAt(t, fresh, "aborted", 0)
}

// compactSoon has real brokers compact the progress topic all the time.
func compactSoon(t *testing.T, k *Kafka) {
	t.Helper()
	var configs []kafka.IncrementalAlterConfigsRequestConfig
	for name, value := range map[string]string{
		"segment.ms": "100", "min.cleanable.dirty.ratio": "0.001", "max.compaction.lag.ms": "200", "delete.retention.ms": "100",
	} {
		configs = append(configs, kafka.IncrementalAlterConfigsRequestConfig{Name: name, Value: value, ConfigOperation: kafka.ConfigOperationSet})
	}
	response, err := k.client.IncrementalAlterConfigs(t.Context(), &kafka.IncrementalAlterConfigsRequest{
		Resources: []kafka.IncrementalAlterConfigsRequestResource{{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: k.options.Topics.Progress, Configs: configs}}})
	must(t, err)
	must(t, response.Resources[0].Error)
}

// awaitCompaction waits until the job's first records are gone.
func awaitCompaction(t *testing.T, k *Kafka) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		commit(t, k, "tick", 0) // a segment is closed by what comes after it
		_, end, err := k.offsets(t.Context(), k.options.Topics.Progress, 0)
		must(t, err)
		records := 0
		var s scan
		must(t, s.readTo(t.Context(), k, k.options.Topics.Progress, 0, end, func(r *record) error {
			if string(r.key) == "job" {
				records++
			}
			return nil
		}))
		if records < 5 {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("%d of the job's records are there after a minute", records)
		}
	}
}

func TestADoneJobIsFoundAmongTenThousand(t *testing.T) {
	k, _ := openSink(t)
	p, err := transaction.Open(t.Context(), k.client, transaction.Options{RetryTimeout: time.Minute, Compressor: transaction.NewCompressor(compress.Lz4)})
	must(t, err)
	for begin := 0; begin < 10_000; begin += 1000 {
		var list []pipeline.Progress
		for i := begin; i < begin+1000; i++ {
			list = append(list, progressAt(fmt.Sprint("job", i), int64(i)))
		}
		must(t, p.Produce(t.Context(), progressBatch(t, k, list...)))
	}
	for _, i := range []int64{0, 4999, 9999} {
		mustBeAt(t, k, fmt.Sprint("job", i), i)
	}
	jobs := 0
	must(t, k.Jobs(t.Context(), func(pipeline.Progress, []byte) error { jobs++; return nil }))
	if jobs != 10_000 {
		t.Errorf("%d jobs are listed", jobs)
	}
}

func TestARecordThatIsNoProgressIsReported(t *testing.T) {
	k, _ := openSink(t)
	p, err := transaction.Open(t.Context(), k.client, transaction.Options{RetryTimeout: time.Minute})
	must(t, err)
	b := &transaction.Batch{TopicPartition: transaction.TopicPartition{Topic: k.options.Topics.Progress}}
	for _, value := range []string{"not JSON", `{"job_id":"another"}`} {
		b.Append(&transaction.Record{Key: []byte("broken" + value[:1]), Value: []byte(value), Time: time.Now()})
	}
	must(t, p.Produce(t.Context(), b))
	commit(t, k, "job", 3)
	if _, _, err := k.Begin(t.Context(), "brokenn"); err == nil || !strings.Contains(err.Error(), "is no progress") {
		t.Errorf("got %v", err)
	}
	mustBeAt(t, k, "job", 3)
	jobs := 0
	err = k.Jobs(t.Context(), func(pipeline.Progress, []byte) error { jobs++; return nil })
	if jobs != 1 || err == nil || !strings.Contains(err.Error(), "another") {
		t.Errorf("%d jobs, error %v", jobs, err)
	}
}

func TestATombstoneForgetsAJob(t *testing.T) {
	k, _ := openSink(t)
	commit(t, k, "job", 3)
	p, err := transaction.Open(t.Context(), k.client, transaction.Options{RetryTimeout: time.Minute})
	must(t, err)
	b := &transaction.Batch{TopicPartition: transaction.TopicPartition{Topic: k.options.Topics.Progress}}
	b.Append(&transaction.Record{Key: []byte("job"), Time: time.Now()})
	must(t, p.Produce(t.Context(), b))
	mustBeAt(t, k, "job", 0)
}

func TestAFencedPublicationSaysWhoIsToBlame(t *testing.T) {
	k, _ := openSink(t)
	older, _, err := k.Begin(t.Context(), "job")
	must(t, err)
	_, _, err = k.Begin(t.Context(), "job")
	must(t, err)
	err = older.Commit(t.Context(), progressAt("job", 1))
	if !errors.Is(err, pipeline.ErrFenced) || !strings.Contains(err.Error(), "job job") {
		t.Errorf("got %v", err)
	}
	mustBeAt(t, k, "job", 0)
}

// FuzzDecodeProgress records whatever is taken for progress once more, and reads
// the same from it.
func FuzzDecodeProgress(f *testing.F) {
	f.Add([]byte("job"), []byte(`{"job_id":"job","run":1,"state":"done","written":[{"topic":"t","partition":1,"first":2,"end":3}]}`))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		progress, err := decodeProgress(&record{key: key, value: value})
		if err == nil && len(value) > 0 && progress.JobID != string(key) {
			t.Errorf("key %q, job %q", key, progress.JobID)
		}
		if err != nil || len(value) == 0 {
			return
		}
		recorded, err := json.Marshal(progress)
		if err != nil {
			return // a date beyond the year 9999, which encoding/json reads but does not write
		}
		again, err := decodeProgress(&record{key: []byte(progress.JobID), value: recorded})
		if err != nil {
			t.Fatalf("%q is recorded as %q: %v", value, recorded, err)
		}
		if twice, _ := json.Marshal(again); !bytes.Equal(twice, recorded) {
			t.Errorf("%q is recorded as %q, and that as %q", value, recorded, twice)
		}
	})
}

// Package sink takes messages to Kafka, a page at a time, with the progress that
// covers them; or to a writer, for a dry run.
package sink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/sasl"

	"rebound/pipeline"
	"rebound/sink/transaction"
)

// Topics names the topics of one kind of jobs.
type Topics struct {
	// Failures takes failed users or failed events.
	Failures    string
	DeadLetters string
	// Progress is compacted.
	Progress string
	// Jobs is where orders come from; empty where none are taken.
	Jobs string
}

func (t Topics) all() []string {
	names := []string{t.Failures, t.DeadLetters, t.Progress}
	if t.Jobs != "" {
		names = append(names, t.Jobs)
	}
	return names
}

// Options says how to reach Kafka and how to publish.
type Options struct {
	// Brokers are where to ask for the cluster, host:port each.
	Brokers []string
	// TLS encrypts the connections where it is set.
	TLS *tls.Config
	// SASL authenticates them where it is set.
	SASL   sasl.Mechanism
	Topics Topics
	// ExactlyOnce publishes in transactions. Without it messages are
	// acknowledged before the progress moves, and can come twice.
	ExactlyOnce bool
	Compression compress.Compression
	// CreateTopics makes missing topics, with Partitions partitions and
	// Replicas replicas; -1 replicas leaves them to the brokers.
	CreateTopics         bool
	Partitions, Replicas int
	// RetryTimeout is how long the brokers may keep failing in a way that is
	// worth another try.
	RetryTimeout time.Duration
	// Log takes each failed try; nil discards it.
	Log *slog.Logger
}

// Kafka is a [pipeline.Sink]. It is safe for concurrent use.
type Kafka struct {
	options Options
	log     *slog.Logger
	client  *kafka.Client
	// compressor is what all publications share.
	compressor *transaction.Compressor
	transport  *kafka.Transport
	layout     layout
	progress   map[int]*progressLog // by partition of the progress topic
	orders     orderWriter
	// publications counts those that are open.
	publications atomic.Int64
	// timeout is that of transactions, in nanoseconds; 0 is the usual one. It
	// grows where a quota or slow brokers make one page take longer.
	timeout atomic.Int64
}

// balancer finds a key's partition as Java's producers do.
var balancer = kafka.Murmur2Balancer{Consistent: true}

// layout is what the topics are like.
type layout struct {
	// partitions of each topic, 0 to n-1.
	partitions map[string][]int
	// maxBytes is each topic's max.message.bytes.
	maxBytes map[string]int
}

// Open connects to Kafka and makes sure that the topics are there.
func Open(ctx context.Context, options Options) (*Kafka, error) {
	k := connect(options)
	if err := k.prepare(ctx); err != nil {
		k.Close()
		return nil, err
	}
	// An empty topic would be written to before the first attempt to read it.
	if err := k.mayRead(ctx, options.Topics.Progress); err != nil {
		k.Close()
		return nil, fmt.Errorf("read %s: %w", options.Topics.Progress, err)
	}
	k.progress = make(map[int]*progressLog)
	for _, partition := range k.layout.partitions[options.Topics.Progress] {
		k.progress[partition] = &progressLog{partition: partition}
	}
	return k, nil
}

func connect(options Options) *Kafka {
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	transport := &kafka.Transport{
		Dial:        (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		DialTimeout: 10 * time.Second,
		IdleTimeout: time.Minute,
		// The layout of the cluster is read anew this often; after a leader
		// has moved, batches wait for it.
		MetadataTTL:    2 * time.Second,
		MetadataTopics: options.Topics.all(),
		ClientID:       "rebound",
		TLS:            options.TLS,
		SASL:           options.SASL,
	}
	return &Kafka{
		options:    options,
		log:        options.Log,
		transport:  transport,
		compressor: transaction.NewCompressor(options.Compression),
		client:     &kafka.Client{Addr: kafka.TCP(options.Brokers...), Transport: transport},
	}
}

// Close closes the connections.
func (k *Kafka) Close() { k.transport.CloseIdleConnections() }

// Limits returns the largest messages that the topics take, uncompressed.
func (k *Kafka) Limits() pipeline.Limits {
	return pipeline.Limits{
		Failure:    k.layout.maxBytes[k.options.Topics.Failures] - batchOverhead,
		DeadLetter: k.layout.maxBytes[k.options.Topics.DeadLetters] - batchOverhead,
	}
}

// batchOverhead is what a batch takes besides its records.
const batchOverhead = 61

// Begin takes the job over: it fences whoever published it before, and reads
// what they committed, in this order. See [pipeline.Sink].
func (k *Kafka) Begin(ctx context.Context, jobID string) (pipeline.Publication, pipeline.Progress, error) {
	log := k.log.With("job", jobID)
	options := transaction.Options{
		Compressor:   k.compressor,
		RetryTimeout: k.options.RetryTimeout,
		Log:          log,
	}
	if k.options.ExactlyOnce {
		options.TransactionalID = TransactionalID(k.options.Topics.Progress, jobID)
		options.Partitions = []transaction.TopicPartition{k.partitionOf(k.options.Topics.Progress, []byte(jobID))}
	}
	options.Timeout = time.Duration(k.timeout.Load())
	producer, err := transaction.Open(ctx, k.client, options)
	if options.Timeout > 0 && errors.Is(err, kafka.InvalidTransactionTimeout) {
		k.timeout.Store(0)
		options.Timeout = 0
		producer, err = transaction.Open(ctx, k.client, options)
	}
	if err != nil {
		return nil, pipeline.Progress{}, k.jobError(jobID, err)
	}
	progress, err := k.progressOf(ctx, jobID)
	if err != nil {
		return nil, pipeline.Progress{}, err
	}
	return newPublication(k, jobID, producer, progress), progress.Progress, nil
}

// partitionOf returns the partition of the topic that the key belongs to.
func (k *Kafka) partitionOf(topic string, key []byte) transaction.TopicPartition {
	partition := balancer.Balance(kafka.Message{Key: key}, k.layout.partitions[topic]...)
	return transaction.TopicPartition{Topic: topic, Partition: partition}
}

// nameOf returns the name of a kind of message's topic.
func (k *Kafka) nameOf(topic pipeline.Topic) string {
	if topic == pipeline.DeadLetters {
		return k.options.Topics.DeadLetters
	}
	return k.options.Topics.Failures
}

// TransactionalID returns the transactional id of a job: everyone who publishes
// the job to the same progress topic has the same one.
func TransactionalID(progressTopic, jobID string) string { return progressTopic + "/" + jobID }

// maxTimeout is how long a transaction may take at most: for so long it may hold
// back the readers of its partitions after a crash.
const maxTimeout = 8 * time.Minute

// lengthen gives the transactions to come twice the time.
func (k *Kafka) lengthen() {
	timeout := time.Duration(k.timeout.Load())
	longer := min(2*max(timeout, transaction.DefaultTimeout), maxTimeout)
	if k.timeout.CompareAndSwap(int64(timeout), int64(longer)) && longer > timeout {
		k.log.Warn("a transaction was not through in time; the next ones have more: is there a quota, or are the brokers slow?", "timeout", longer.String())
	}
}

// jobError words a producer's error in the terms of jobs.
func (k *Kafka) jobError(jobID string, err error) error {
	switch {
	case errors.Is(err, transaction.ErrFenced):
		return fmt.Errorf("job %s: %w: it took the job over and goes on from what was committed; leave the job to it (%v)",
			jobID, pipeline.ErrFenced, err)
	case errors.Is(err, transaction.ErrAborted):
		return fmt.Errorf("job %s: %w: %w", jobID, pipeline.ErrAborted, err)
	}
	return fmt.Errorf("job %s: Kafka: %w", jobID, explain(err))
}

// retry repeats a request of the set-up while that is worth it.
func (k *Kafka) retry(ctx context.Context, step string, do func(context.Context) error) error {
	return transaction.Retry(ctx, k.options.RetryTimeout, func(err error, failing, in time.Duration) {
		k.log.Warn("Kafka could not be asked; trying again", "step", step, "brokers", strings.Join(k.options.Brokers, ","),
			"error", err, "failing", failing.Round(time.Millisecond).String(), "in", in.Round(time.Millisecond).String())
	}, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		err := do(ctx)
		if errors.Is(err, kafka.Unknown) {
			// The broker does not know itself what is wrong. To ask again does
			// no harm, unlike to write again.
			err = errors.New(err.Error())
		}
		return err
	})
}

// requestTimeout bounds one request of the set-up.
const requestTimeout = 15 * time.Second

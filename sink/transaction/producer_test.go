package transaction_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"rebound/sink/transaction"
)

// cluster is a Kafka with a topic of the test's own: the brokers that
// KAFKA_BROKERS names, or embedded ones.
type cluster struct {
	t       *testing.T
	fake    *kfake.Cluster
	brokers []string
	client  *kafka.Client
	topic   string
}

func newCluster(t *testing.T, mustBeEmbedded bool) *cluster {
	t.Helper()
	c := &cluster{t: t, topic: fmt.Sprintf("transaction-%d", time.Now().UnixNano())}
	if brokers := os.Getenv("KAFKA_BROKERS"); brokers != "" && !mustBeEmbedded {
		c.brokers = strings.Split(brokers, ",")
	} else {
		fake, err := kfake.NewCluster(kfake.NumBrokers(3))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(fake.Close)
		c.fake, c.brokers = fake, fake.ListenAddrs()
	}
	transport := &kafka.Transport{MetadataTTL: 200 * time.Millisecond, Dial: (&net.Dialer{}).DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	c.client = &kafka.Client{Addr: kafka.TCP(c.brokers...), Transport: transport}
	admin := kadm.NewClient(c.consumer())
	if _, err := admin.CreateTopic(t.Context(), 3, -1, nil, c.topic); err != nil {
		t.Fatal(err)
	}
	for { // until every broker has heard of it
		metadata, err := c.client.Metadata(t.Context(), &kafka.MetadataRequest{Topics: []string{c.topic}})
		if err == nil && metadata.Topics[0].Error == nil && len(metadata.Topics[0].Partitions) == 3 {
			return c
		}
	}
}

func (c *cluster) consumer(options ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(c.brokers...))...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.Close)
	return client
}

func (c *cluster) open(options transaction.Options) *transaction.Producer {
	c.t.Helper()
	options.RetryTimeout = 30 * time.Second
	p, err := transaction.Open(c.t.Context(), c.client, options)
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// batch returns a batch of records with these values.
func (c *cluster) batch(partition int, values ...string) *transaction.Batch {
	b := &transaction.Batch{TopicPartition: transaction.TopicPartition{Topic: c.topic, Partition: partition}}
	for _, value := range values {
		b.Append(&transaction.Record{Key: []byte("key"), Value: []byte(value), Time: time.Now(),
			Headers: []transaction.Header{{Name: "h", Value: []byte(value)}}})
	}
	return b
}

// committed reads the topic to its end as a read_committed consumer that shares
// nothing with the package, and returns the values, sorted.
func (c *cluster) committed() []string {
	c.t.Helper()
	client := c.consumer(kgo.ConsumeTopics(c.topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	admin := kadm.NewClient(client)
	var ends map[int32]kadm.ListedOffset
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) { // a commit is acknowledged before its markers are written
		stable, err := admin.ListCommittedOffsets(c.t.Context(), c.topic)
		if err != nil {
			c.t.Fatal(err)
		}
		high, err := admin.ListEndOffsets(c.t.Context(), c.topic)
		if err != nil {
			c.t.Fatal(err)
		}
		settled := true
		for p, end := range high[c.topic] {
			settled = settled && stable[c.topic][p].Offset == end.Offset
		}
		if ends = stable[c.topic]; settled || time.Since(began) > 3*time.Second {
			break
		}
	}
	values := []string{}
	positions := make(map[int32]int64)
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	for {
		done := true
		for p, end := range ends {
			done = done && positions[p] >= end.Offset
		}
		if done {
			slices.Sort(values)
			return values
		}
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			c.t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			positions[r.Partition] = r.Offset + 1
			if !r.Attrs.IsControl() {
				values = append(values, string(r.Value))
			}
		})
	}
}

func (c *cluster) mustHave(want ...string) {
	c.t.Helper()
	if got := c.committed(); !slices.Equal(got, want) {
		c.t.Errorf("committed are %q, want %q", got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsCommittedIsReadOnceAndWhatIsAbortedNever(t *testing.T) {
	for _, codec := range []compress.Compression{compress.None, compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd} {
		t.Run(codec.String(), func(t *testing.T) {
			c := newCluster(t, false)
			options := transaction.Options{TransactionalID: c.topic, Compressor: transaction.NewCompressor(codec)}
			long := strings.Repeat("compressible ", 1000)
			p := c.open(options)
			must(t, p.Produce(t.Context(), c.batch(0, "a", "b"), c.batch(1, "c"), c.batch(2, long)))
			must(t, p.Commit(t.Context()))
			must(t, p.Produce(t.Context(), c.batch(0, "aborted")))
			must(t, p.Abort(t.Context()))
			p = c.open(options)
			must(t, p.Produce(t.Context(), c.batch(0, "d")))
			must(t, p.Produce(t.Context(), c.batch(0, "e")))
			must(t, p.Commit(t.Context()))
			c.mustHave("a", "b", "c", long, "d", "e")
		})
	}
}

func TestAnIdempotentProducerNeedsNoCommit(t *testing.T) {
	c := newCluster(t, false)
	p := c.open(transaction.Options{})
	b := c.batch(1, "a", "b")
	must(t, p.Produce(t.Context(), b))
	b.Reset()
	b.Append(&transaction.Record{Value: []byte("c"), Time: time.Now()})
	must(t, p.Produce(t.Context(), b))
	if b.Offset != 2 {
		t.Errorf("the third record is at offset %d", b.Offset)
	}
	c.mustHave("a", "b", "c")
}

func TestOpenFencesTheProducerBeforeAndAbortsItsTransaction(t *testing.T) {
	c := newCluster(t, false)
	options := transaction.Options{TransactionalID: c.topic}
	older := c.open(options)
	must(t, older.Produce(t.Context(), c.batch(0, "left open")))
	newer := c.open(options)
	must(t, newer.Produce(t.Context(), c.batch(0, "counts")))
	if err := older.Produce(t.Context(), c.batch(0, "too late")); !errors.Is(err, transaction.ErrFenced) {
		t.Errorf("the older producer gets %v", err)
	}
	if err := older.Commit(t.Context()); !errors.Is(err, transaction.ErrFenced) {
		t.Errorf("and then %v", err)
	}
	must(t, newer.Commit(t.Context()))
	c.mustHave("counts")
}

func TestATransactionThatWasOpenTooLongIsLostNotFenced(t *testing.T) {
	c := newCluster(t, true) // the brokers' clock runs faster here
	p := c.open(transaction.Options{TransactionalID: c.topic, Timeout: 1500 * time.Millisecond})
	must(t, p.Produce(t.Context(), c.batch(0, "lost")))
	var err error
	for err == nil { // until the coordinator has had enough
		time.Sleep(100 * time.Millisecond)
		err = p.Produce(t.Context(), c.batch(0, "lost"))
	}
	if !errors.Is(err, transaction.ErrAborted) || errors.Is(err, transaction.ErrFenced) {
		t.Errorf("got %v", err)
	}
	c.mustHave()
}

// What the producer does about each error code, injected into the answer to each
// of its requests.
func TestErrorCodes(t *testing.T) {
	const initProducerID, produce, addPartitions, endTxn = 22, 0, 24, 26
	for _, c := range []struct {
		name string
		code int16
		keys []int16
		want error // nil: it succeeds in the end
	}{
		{"a damaged batch is sent again", 2, []int16{produce}, nil},
		{"an unknown partition is waited for", 3, []int16{produce, addPartitions}, nil},
		{"a leader that moved is looked up again", 6, []int16{produce}, nil},
		{"a time-out is sent again", 7, []int16{produce, initProducerID, endTxn}, nil},
		{"a loading coordinator is waited for", 14, []int16{initProducerID, addPartitions, endTxn}, nil},
		{"a missing coordinator is waited for", 15, []int16{initProducerID, addPartitions, endTxn}, nil},
		{"a coordinator that moved is looked up again", 16, []int16{initProducerID, addPartitions, endTxn}, nil},
		{"too few replicas are waited for", 19, []int16{produce}, nil},
		{"too few replicas after the append: sent again", 20, []int16{produce}, nil},
		{"a failed disk is waited for", 56, []int16{produce}, nil},
		{"markers that are being written are waited for", 51, []int16{initProducerID, addPartitions, endTxn}, nil},
		{"an unknown error on opening is tried again", 9999, []int16{initProducerID}, nil},
		{"a server error on opening is tried again", -1, []int16{initProducerID}, nil},
		{"a repeated sequence is accepted", 46, []int16{produce}, nil},
		{"a lost sequence ends the transaction", 45, []int16{produce}, transaction.ErrAborted},
		{"a forgotten producer ends the transaction", 59, []int16{produce}, transaction.ErrAborted},
		{"a forgotten transactional id ends the transaction", 49, []int16{addPartitions, endTxn}, transaction.ErrAborted},
		{"a transaction in another state ends", 48, []int16{produce, addPartitions, endTxn}, transaction.ErrAborted},
		{"a broker that asks for an abort gets it", 120, []int16{produce, addPartitions, endTxn}, transaction.ErrAborted},
		{"an unknown error ends the transaction", 9999, []int16{produce, addPartitions, endTxn}, transaction.ErrAborted},
		{"an old epoch is fenced", 47, []int16{produce, addPartitions, endTxn}, transaction.ErrFenced},
		{"a fenced producer is fenced", 90, []int16{addPartitions, endTxn}, transaction.ErrFenced},
		{"a refused topic is refused", 29, []int16{produce, addPartitions}, kafka.TopicAuthorizationFailed},
		{"a refused transactional id is refused", 53, []int16{initProducerID, addPartitions, endTxn}, kafka.TransactionalIDAuthorizationFailed},
		{"a batch that is too large is refused", 10, []int16{produce}, kafka.MessageSizeTooLarge},
	} {
		for _, key := range c.keys {
			t.Run(fmt.Sprintf("%s (request %d)", c.name, key), func(t *testing.T) {
				t.Parallel()
				k := newCluster(t, true)
				k.fake.ControlKey(key, func(request kmsg.Request) (kmsg.Response, error, bool) {
					return failing(request, c.code), nil, true
				})
				err := func() error {
					p, err := transaction.Open(t.Context(), k.client, transaction.Options{TransactionalID: "id", RetryTimeout: 10 * time.Second})
					if err != nil {
						return err
					}
					if err := p.Produce(t.Context(), k.batch(0, "a"), k.batch(1, "b")); err != nil {
						return err
					}
					return p.Commit(t.Context())
				}()
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if c.want == nil && c.code != 46 {
					k.mustHave("a", "b")
				}
				var other = map[error]error{transaction.ErrAborted: transaction.ErrFenced, transaction.ErrFenced: transaction.ErrAborted}[c.want]
				if other != nil && errors.Is(err, other) {
					t.Errorf("%v is %v, too", err, other)
				}
			})
		}
	}
}

// failing returns the answer to a request with the error code everywhere.
func failing(request kmsg.Request, code int16) kmsg.Response {
	switch request := request.(type) {
	case *kmsg.InitProducerIDRequest:
		response := request.ResponseKind().(*kmsg.InitProducerIDResponse)
		response.ErrorCode = code
		return response
	case *kmsg.EndTxnRequest:
		response := request.ResponseKind().(*kmsg.EndTxnResponse)
		response.ErrorCode = code
		return response
	case *kmsg.AddPartitionsToTxnRequest:
		response := request.ResponseKind().(*kmsg.AddPartitionsToTxnResponse)
		for _, topic := range request.Topics {
			failed := kmsg.NewAddPartitionsToTxnResponseTopic()
			failed.Topic = topic.Topic
			for _, partition := range topic.Partitions {
				p := kmsg.NewAddPartitionsToTxnResponseTopicPartition()
				p.Partition, p.ErrorCode = partition, code
				failed.Partitions = append(failed.Partitions, p)
			}
			response.Topics = append(response.Topics, failed)
		}
		return response
	case *kmsg.ProduceRequest:
		response := request.ResponseKind().(*kmsg.ProduceResponse)
		for _, topic := range request.Topics {
			failed := kmsg.NewProduceResponseTopic()
			failed.Topic = topic.Topic
			for _, partition := range topic.Partitions {
				p := kmsg.NewProduceResponseTopicPartition()
				p.Partition, p.ErrorCode = partition.Partition, code
				failed.Partitions = append(failed.Partitions, p)
			}
			response.Topics = append(response.Topics, failed)
		}
		return response
	}
	return nil
}

func TestALostAcknowledgementRepeatsNothing(t *testing.T) {
	c := newCluster(t, true)
	p := c.open(transaction.Options{TransactionalID: "id"})
	for i, key := range []int16{0, 24, 26, 0, 26} { // Produce, AddPartitionsToTxn, EndTxn
		lost := false
		c.fake.ControlKey(key, func(kmsg.Request) (kmsg.Response, error, bool) {
			if lost {
				return nil, nil, false
			}
			// kfake handles the request and the connection dies with the answer.
			lost = true
			c.fake.KeepControl()
			return nil, errors.New("the connection dies"), true
		})
		must(t, p.Produce(t.Context(), c.batch(i%3, fmt.Sprint(i))))
		must(t, p.Commit(t.Context()))
		c.fake.DropControl()
	}
	c.mustHave("0", "1", "2", "3", "4")
}

// On Apache Kafka some of these would fail without Settle: a commit is answered
// before its markers are written.
func TestWhatIsSettledIsSeen(t *testing.T) {
	c := newCluster(t, false)
	p := c.open(transaction.Options{TransactionalID: c.topic})
	must(t, p.Settle(t.Context())) // nothing to wait for
	admin := kadm.NewClient(c.consumer())
	for i := range 20 {
		must(t, p.Produce(t.Context(), c.batch(0, "a"), c.batch(1, "b"), c.batch(2, "c")))
		must(t, p.Commit(t.Context()))
		must(t, p.Settle(t.Context()))
		stable, err := admin.ListCommittedOffsets(t.Context(), c.topic)
		must(t, err)
		for partition, offset := range stable[c.topic] {
			if want := int64(2 * (i + 1)); offset.Offset != want { // a record and a marker each time
				t.Fatalf("commit %d: readers see partition %d up to %d, want %d", i+1, partition, offset.Offset, want)
			}
		}
	}
}

func TestMarkersAreWaitedFor(t *testing.T) {
	c := newCluster(t, true)
	p := c.open(transaction.Options{TransactionalID: "id"})
	must(t, p.Produce(t.Context(), c.batch(0, "a")))
	must(t, p.Commit(t.Context()))
	const endTxn, concurrentTransactions, times = 26, 51, 3
	asked := 0
	c.fake.ControlKey(endTxn, func(request kmsg.Request) (kmsg.Response, error, bool) {
		if asked++; asked > times {
			return nil, nil, false
		}
		c.fake.KeepControl()
		return failing(request, concurrentTransactions), nil, true
	})
	must(t, p.Settle(t.Context()))
	if asked != times+1 {
		t.Errorf("it asked %d times", asked)
	}
	must(t, p.Settle(t.Context())) // asks no more
	must(t, p.Produce(t.Context(), c.batch(0, "b")))
	must(t, p.Commit(t.Context()))
	c.mustHave("a", "b")
}

func TestAMovedLeaderIsFound(t *testing.T) {
	c := newCluster(t, true)
	p := c.open(transaction.Options{TransactionalID: "id"})
	for i := range 5 {
		must(t, p.Produce(t.Context(), c.batch(0, fmt.Sprint(i, "a")), c.batch(1, fmt.Sprint(i, "b"))))
		c.fake.ShufflePartitionLeaders()
		c.fake.RehashCoordinators()
		must(t, p.Commit(t.Context()))
	}
	if got := c.committed(); len(got) != 10 {
		t.Errorf("committed are %q", got)
	}
}

func TestAContextEndsEveryWait(t *testing.T) {
	c := newCluster(t, true)
	p := c.open(transaction.Options{TransactionalID: "id"})
	c.fake.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := p.Produce(ctx, c.batch(0, "a")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

func ExampleProducer() {
	ctx := context.Background()
	client := &kafka.Client{Addr: kafka.TCP("localhost:9092"), Transport: &kafka.Transport{}}
	producer, err := transaction.Open(ctx, client, transaction.Options{
		TransactionalID: "orders-7",
		Compressor:      transaction.NewCompressor(compress.Lz4),
		RetryTimeout:    time.Minute,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	batch := &transaction.Batch{TopicPartition: transaction.TopicPartition{Topic: "orders", Partition: 0}}
	batch.Append(&transaction.Record{Key: []byte("7"), Value: []byte("shipped"), Time: time.Now()})
	if err := producer.Produce(ctx, batch); err != nil {
		fmt.Println(err)
		return
	}
	if err := producer.Commit(ctx); err != nil {
		fmt.Println(err)
		return
	}
	// It is committed. Wait until readers with isolation.level=read_committed see it.
	if err := producer.Settle(ctx); err != nil {
		fmt.Println(err)
	}
}

package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"rebound/sink/transaction"
)

// Check tries whether the options work, changing nothing, and calls report for
// each thing that it tried: with how it is, or with what is wrong. Where there is
// a jobs topic, group is the consumer group that shares it.
func Check(ctx context.Context, options Options, group string, report func(what, how string, err error)) {
	k := connect(options)
	defer k.Close()

	missing, err := k.readLayout(ctx)
	report("Kafka", "the brokers at "+strings.Join(options.Brokers, ",")+" answer", err)
	if err != nil {
		return
	}
	for _, topic := range options.Topics.all() {
		if slices.Contains(missing, topic) {
			report("topic "+topic, "does not exist; it will be created", k.wouldCreate(ctx, topic))
			continue
		}
		how := fmt.Sprintf("%d partitions, may be written to", len(k.layout.partitions[topic]))
		err := k.mayWrite(ctx, topic)
		if err == nil {
			err = k.mayRead(ctx, topic)
			if isOutput := topic == options.Topics.Failures || topic == options.Topics.DeadLetters; isOutput && errors.Is(err, kafka.TopicAuthorizationFailed) {
				how += `; "rebound verify" would need the ACL Read on it`
				err = nil
			}
		}
		report("topic "+topic, how, err)
	}
	if options.Topics.Jobs != "" {
		report("consumer group "+group, "may be joined", k.mayJoin(ctx, group))
	}
	if options.ExactlyOnce {
		report("transactions", "are allowed", k.mayTransact(ctx))
	}
}

// wouldCreate asks the brokers whether they would create the topic.
func (k *Kafka) wouldCreate(ctx context.Context, topic string) error {
	if !k.options.CreateTopics {
		return errors.New("does not exist: create it, or set KAFKA_CREATE_TOPICS=true; where it does exist, rebound's user needs the ACL Describe on it")
	}
	return k.createTopics(ctx, []string{topic}, true)
}

func (k *Kafka) mayWrite(ctx context.Context, topic string) error {
	err := k.retry(ctx, "try to write to "+topic, func(ctx context.Context) error {
		return transaction.Probe(ctx, k.client, transaction.TopicPartition{Topic: topic, Partition: k.layout.partitions[topic][0]})
	})
	return topicError("Write", topic, err)
}

func (k *Kafka) mayRead(ctx context.Context, topic string) error {
	partition := k.layout.partitions[topic][0]
	first, _, err := k.offsets(ctx, topic, partition)
	if err == nil {
		_, err = k.fetch(ctx, topic, partition, first, time.Millisecond)
	}
	return readError(topic, err)
}

// mayJoin asks for the heartbeat of a member that there is not.
func (k *Kafka) mayJoin(ctx context.Context, group string) error {
	return explain(k.retry(ctx, "ask for the consumer group", func(ctx context.Context) error {
		err := k.heartbeat(ctx, &kafka.HeartbeatRequest{GroupID: group, GenerationID: 1, MemberID: "rebound check"})
		switch {
		case errors.Is(err, kafka.UnknownMemberId), errors.Is(err, kafka.IllegalGeneration),
			errors.Is(err, kafka.RebalanceInProgress), errors.Is(err, kafka.GroupIdNotFound):
			return nil
		}
		return err
	}))
}

// mayTransact opens a producer with a transactional id that no job has.
func (k *Kafka) mayTransact(ctx context.Context) error {
	_, err := transaction.Open(ctx, k.client, transaction.Options{
		TransactionalID: TransactionalID(k.options.Topics.Progress, "rebound check"),
		RetryTimeout:    k.options.RetryTimeout,
	})
	return explain(err)
}

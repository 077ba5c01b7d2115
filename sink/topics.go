package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
)

// defaultMaxBytes is Kafka's default for max.message.bytes.
const defaultMaxBytes = 1048588

// ErrNoTopic tells that a topic is not there and is not to be made.
var ErrNoTopic = errors.New("no topic")

// prepare makes missing topics and reads what the topics are like.
func (k *Kafka) prepare(ctx context.Context) error {
	missing, err := k.readLayout(ctx)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		if !k.options.CreateTopics {
			return fmt.Errorf("Kafka has %w %s: create it, or let rebound do it with KAFKA_CREATE_TOPICS=true; "+
				"where it exists, rebound's user needs the ACL Describe on it", ErrNoTopic, strings.Join(missing, " and no topic "))
		}
		if err := k.createTopics(ctx, missing, false); err != nil {
			return err
		}
		if err := k.awaitTopics(ctx); err != nil {
			return err
		}
	}
	return k.readLimits(ctx)
}

// awaitTopics waits until the topics that were just created are in the metadata:
// it takes a moment until every broker has heard of them.
func (k *Kafka) awaitTopics(ctx context.Context) error {
	const moment = 30 * time.Second
	began := time.Now()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		missing, err := k.readLayout(ctx)
		if err != nil || len(missing) == 0 {
			return err
		}
		if time.Since(began) > moment {
			return fmt.Errorf("topic %s was created and yet Kafka does not show it: does rebound's user have the ACL Describe on it?", missing[0])
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readLayout reads the topics' partitions and returns the topics that are not
// there.
func (k *Kafka) readLayout(ctx context.Context) (missing []string, err error) {
	err = k.retry(ctx, "look for the topics", func(ctx context.Context) error {
		metadata, err := k.client.Metadata(ctx, &kafka.MetadataRequest{Topics: k.options.Topics.all()})
		if err != nil {
			return err
		}
		missing = nil
		k.layout.partitions = make(map[string][]int)
		for _, topic := range metadata.Topics {
			switch {
			case errors.Is(topic.Error, kafka.UnknownTopicOrPartition):
				missing = append(missing, topic.Name)
			case topic.Error != nil:
				return fmt.Errorf("topic %s: %w", topic.Name, topic.Error)
			default:
				for _, partition := range topic.Partitions {
					k.layout.partitions[topic.Name] = append(k.layout.partitions[topic.Name], partition.ID)
				}
				slices.Sort(k.layout.partitions[topic.Name])
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("Kafka at %s: %w%s", strings.Join(k.options.Brokers, ","), explain(err), k.silenceHint(err))
	}
	return missing, nil
}

// silenceHint says what may be behind brokers that take a connection and do not
// answer on it.
func (k *Kafka) silenceHint(err error) string {
	var network net.Error
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !(errors.As(err, &network) && network.Timeout()) {
		return ""
	}
	if k.options.SASL != nil {
		return ": the brokers do not answer; check KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_TLS"
	}
	return ": the brokers do not answer; check KAFKA_BROKERS, KAFKA_TLS and whether they want KAFKA_SASL_MECHANISM"
}

// createTopics makes topics, or only asks whether that would be allowed.
func (k *Kafka) createTopics(ctx context.Context, names []string, ask bool) error {
	request := &kafka.CreateTopicsRequest{ValidateOnly: ask}
	for _, name := range names {
		topic := kafka.TopicConfig{Topic: name, NumPartitions: k.options.Partitions, ReplicationFactor: k.options.Replicas}
		if name == k.options.Topics.Progress {
			topic.ConfigEntries = []kafka.ConfigEntry{{ConfigName: "cleanup.policy", ConfigValue: "compact"}}
		}
		request.Topics = append(request.Topics, topic)
	}
	return k.retry(ctx, "create the topics", func(ctx context.Context) error {
		response, err := k.client.CreateTopics(ctx, request)
		if err != nil {
			return err
		}
		for _, name := range names {
			err := response.Errors[name]
			if ask && err == nil {
				continue
			}
			if err == nil || errors.Is(err, kafka.TopicAlreadyExists) {
				k.log.Info("topic created", "topic", name, "partitions", k.options.Partitions)
				continue
			}
			if errors.Is(err, kafka.TopicAuthorizationFailed) || errors.Is(err, kafka.ClusterAuthorizationFailed) {
				return fmt.Errorf("topic %s does not exist and rebound's user may not create it: create it beforehand (KAFKA_CREATE_TOPICS=false), "+
					"or grant the ACL Create on it: %w", name, err)
			}
			return fmt.Errorf("topic %s does not exist and could not be created with KAFKA_TOPIC_PARTITIONS=%d and KAFKA_REPLICATION_FACTOR=%s: %w",
				name, k.options.Partitions, replicas(k.options.Replicas), err)
		}
		return nil
	})
}

func replicas(n int) string {
	if n < 0 {
		return "(the brokers' default)"
	}
	return strconv.Itoa(n)
}

// readLimits reads each topic's max.message.bytes. Where that is not allowed
// Kafka's default is assumed.
func (k *Kafka) readLimits(ctx context.Context) error {
	request := &kafka.DescribeConfigsRequest{}
	k.layout.maxBytes = make(map[string]int)
	for _, name := range k.options.Topics.all() {
		k.layout.maxBytes[name] = defaultMaxBytes
		request.Resources = append(request.Resources, kafka.DescribeConfigRequestResource{
			ResourceType: kafka.ResourceTypeTopic,
			ResourceName: name,
			ConfigNames:  []string{"max.message.bytes", "cleanup.policy"},
		})
	}
	var response *kafka.DescribeConfigsResponse
	err := k.retry(ctx, "read the topics' settings", func(ctx context.Context) (err error) {
		response, err = k.client.DescribeConfigs(ctx, request)
		return err
	})
	if err != nil {
		return fmt.Errorf("read the topics' settings: %w", explain(err))
	}
	for _, resource := range response.Resources {
		if resource.Error != nil {
			k.log.Warn("the topic's max.message.bytes cannot be read; taking Kafka's default. The ACL DescribeConfigs on the topic allows it",
				"topic", resource.ResourceName, "default", defaultMaxBytes, "error", resource.Error)
			continue
		}
		for _, entry := range resource.ConfigEntries {
			switch entry.ConfigName {
			case "max.message.bytes":
				if n, err := strconv.Atoi(entry.ConfigValue); err == nil && n > 0 {
					k.layout.maxBytes[resource.ResourceName] = n
				}
			case "cleanup.policy":
				if resource.ResourceName == k.options.Topics.Progress && !strings.Contains(entry.ConfigValue, "compact") {
					k.log.Warn("the progress topic is not compacted: when its retention is over, finished jobs are forgotten and would be published again",
						"topic", resource.ResourceName, "cleanup.policy", entry.ConfigValue)
				}
			}
		}
	}
	return nil
}

package sink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"

	"rebound/sink/transaction"
)

// hints tells, for what the brokers refuse, which setting or ACL to look at.
var hints = map[kafka.Error]string{
	kafka.MessageSizeTooLarge:                "max.message.bytes was lowered while rebound ran: run it again, it reads the new limit",
	kafka.RecordListTooLarge:                 "raise the topic's segment.bytes",
	kafka.InvalidRecord:                      "the topic with the failed users must not be compacted, nor demand timestamps of the past",
	kafka.TopicAuthorizationFailed:           "grant rebound's user the ACLs Describe and Write on its topics, and Read on the progress topic",
	kafka.GroupAuthorizationFailed:           "grant rebound's user the ACL Read on the consumer group (KAFKA_GROUP_ID)",
	kafka.ClusterAuthorizationFailed:         "grant rebound's user the ACL IdempotentWrite on the cluster",
	kafka.TransactionalIDAuthorizationFailed: "grant rebound's user the ACLs Describe and Write on transactional ids that begin with KAFKA_PROGRESS_TOPIC, or set KAFKA_DELIVERY=at-least-once",
	kafka.InvalidTransactionTimeout:          "raise the brokers' transaction.max.timeout.ms to 30000 or more",
	kafka.UnsupportedVersion:                 "rebound needs brokers of version 2.1 or later",
	kafka.UnsupportedForMessageFormat:        "raise the topic's message.format.version to 0.11 or later",
	kafka.UnsupportedCompressionType:         "set KAFKA_COMPRESSION to another codec",
	kafka.SASLAuthenticationFailed:           "check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM",
	kafka.UnsupportedSASLMechanism:           "check KAFKA_SASL_MECHANISM: the brokers do not offer it",
	kafka.IllegalSASLState:                   "check KAFKA_BROKERS and KAFKA_SASL_MECHANISM: no authentication is expected on this port",
	kafka.SecurityDisabled:                   "unset KAFKA_SASL_MECHANISM",
	kafka.InvalidReplicationFactor:           "set KAFKA_REPLICATION_FACTOR to no more than there are brokers",
	kafka.PolicyViolation:                    "create the topic as the brokers' policy demands, and set KAFKA_CREATE_TOPICS=false",
}

// explain adds to an error what its reader can do about it.
func explain(err error) error {
	if hint := hintFor(err); hint != "" {
		return fmt.Errorf("%w: %s", err, hint)
	}
	return err
}

// readError is explain for reading a topic.
func readError(topic string, err error) error { return topicError("Read", topic, err) }

// topicError is explain for an operation on one topic, whose ACL it names.
func topicError(operation, topic string, err error) error {
	if errors.Is(err, kafka.TopicAuthorizationFailed) {
		return fmt.Errorf("%w: grant rebound's user the ACL %s on topic %s", err, operation, topic)
	}
	return explain(err)
}

func hintFor(err error) string {
	var code kafka.Error
	if errors.As(err, &code) {
		return hints[code]
	}
	var unknownAuthority x509.UnknownAuthorityError
	var otherHost x509.HostnameError
	var notValid x509.CertificateInvalidError
	var notTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &unknownAuthority):
		return "set KAFKA_TLS_CA_FILE to the authority that signed the brokers' certificate"
	case errors.As(err, &otherHost):
		return "use the names in the brokers' certificate in KAFKA_BROKERS and in the brokers' advertised.listeners"
	case errors.As(err, &notValid):
		return "the brokers' certificate has to be renewed"
	case errors.As(err, &notTLS):
		return "check KAFKA_BROKERS and KAFKA_TLS: no TLS is spoken on this port"
	case transaction.CertificateRefused(err):
		return "the brokers want a client certificate that they trust and that has not expired: check KAFKA_TLS_CERT_FILE and KAFKA_TLS_KEY_FILE"
	}
	return ""
}

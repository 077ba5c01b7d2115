package transaction

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// verdict is what a producer does about an error.
type verdict int

const (
	// restart: the transaction cannot be saved. It is aborted, and the work
	// begins again from what was committed. Also the verdict on what is not in
	// the table: to begin again is always right, only slower.
	restart verdict = iota
	// again: the same request may succeed in a while.
	again
	// soon: the same request succeeds once the coordinator has written the
	// markers of the transaction before, in milliseconds as a rule.
	soon
	// accepted: the broker has what was sent.
	accepted
	// fenced: a producer with the same transactional id was opened later, or
	// the transaction was open for too long.
	fenced
	// refused: no other try helps before somebody changes something.
	refused
)

// verdicts is how the producer takes the brokers' error codes. Each row has its
// reason; the codes are those of https://kafka.apache.org/protocol#protocol_error_codes
// and, for transactions, of KIP-98, KIP-360, KIP-588 and KIP-890.
var verdicts = map[kafka.Error]struct {
	verdict verdict
	reason  string
}{
	kafka.InvalidMessage:          {again, "the batch was damaged on its way: its CRC does not match"},
	kafka.UnknownTopicOrPartition: {again, "the broker has not heard of the partition yet"},
	kafka.LeaderNotAvailable:      {again, "a leader is being elected"},
	kafka.NotLeaderForPartition:   {again, "the leader moved; newer metadata tells where to"},
	kafka.RequestTimedOut:         {again, "the replicas did not acknowledge in time; a repetition is recognized by its sequence"},
	kafka.BrokerNotAvailable:      {again, "the broker is down or not in the metadata yet"},
	kafka.ReplicaNotAvailable:     {again, "a replica is being moved"},
	kafka.NetworkException:        {again, "the broker lost the connection first"},
	kafka.NotEnoughReplicas:       {again, "fewer replicas in sync than min.insync.replicas; nothing was written"},
	kafka.NotEnoughReplicasAfterAppend: {again,
		"written, but to fewer replicas than min.insync.replicas; a repetition is recognized"},
	kafka.KafkaStorageError:       {again, "the leader's disk failed or is full; another replica becomes leader"},
	kafka.FencedLeaderEpoch:       {again, "the metadata is older than the leader"},
	kafka.UnknownLeaderEpoch:      {again, "the broker is older than the metadata"},
	kafka.ListenerNotFound:        {again, "the leader is starting"},
	kafka.OffsetNotAvailable:      {again, "the new leader does not know its high watermark yet, KIP-207"},
	kafka.ThrottlingQuotaExceeded: {again, "a quota, KIP-599"},
	kafka.UnknownTopicID:          {again, "the topic is being created"},

	kafka.GroupLoadInProgress:          {again, "the transaction coordinator is loading its log"},
	kafka.GroupCoordinatorNotAvailable: {again, "the transaction coordinator's partition has no leader yet"},
	kafka.NotCoordinatorForGroup:       {again, "the transaction coordinator moved"},
	kafka.ConcurrentTransactions:       {soon, "the markers of the transaction before are being written, KIP-98"},

	kafka.DuplicateSequenceNumber: {accepted, "the broker has had the batch before, KIP-98"},

	kafka.InvalidProducerEpoch: {fenced, "the epoch was raised: by another producer, or by the coordinator when the transaction timed out, KIP-588"},
	kafka.ProducerFenced:       {fenced, "as 47, from brokers that tell fencing from other reasons, KIP-588"},

	kafka.OutOfOrderSequenceNumber:     {restart, "the broker lost a batch that it had acknowledged, or forgot the producer, KIP-360"},
	kafka.UnknownProducerId:            {restart, "the broker forgot the producer: retention removed its last batch, KIP-360"},
	kafka.InvalidProducerIDMapping:     {restart, "the coordinator forgot the producer: transactional.id.expiration.ms, KIP-98"},
	kafka.InvalidTransactionState:      {restart, "the coordinator has aborted the transaction, or never heard of it, KIP-890"},
	kafka.TransactionCoordinatorFenced: {again, "an old coordinator; the new one answers next"},
	abortable:                          {restart, "the broker asks for an abort, KIP-890"},

	kafka.MessageSizeTooLarge:                {refused, "larger than the topic's max.message.bytes"},
	kafka.RecordListTooLarge:                 {refused, "larger than the topic's segment.bytes"},
	kafka.InvalidRecord:                      {refused, "the topic's settings do not allow such a record, KIP-467"},
	kafka.TopicAuthorizationFailed:           {refused, "an ACL on the topic is missing"},
	kafka.ClusterAuthorizationFailed:         {refused, "the ACL IdempotentWrite on the cluster is missing, KIP-98; from version 2.8 on Write on a topic is enough, KIP-679"},
	kafka.TransactionalIDAuthorizationFailed: {refused, "the ACL Describe or Write on the transactional id is missing"},
	kafka.InvalidTransactionTimeout:          {refused, "longer than the brokers' transaction.max.timeout.ms"},
	kafka.InvalidTopic:                       {refused, "the topic's name is not allowed"},
	kafka.PolicyViolation:                    {refused, "a policy of the brokers forbids it"},
	kafka.UnsupportedVersion:                 {refused, "the brokers are too old"},
	kafka.UnsupportedForMessageFormat:        {refused, "the topic's message format is older than record batches, KIP-98"},
	kafka.UnsupportedCompressionType:         {refused, "the brokers do not know the codec"},
	kafka.SASLAuthenticationFailed:           {refused, "wrong credentials"},
	kafka.UnsupportedSASLMechanism:           {refused, "the brokers do not offer the mechanism"},
	kafka.IllegalSASLState:                   {refused, "the brokers expect no authentication on this listener"},
	kafka.SecurityDisabled:                   {refused, "the brokers have no security switched on"},
}

// abortable is TRANSACTION_ABORTABLE, which kafka-go does not name.
const abortable kafka.Error = 120

// judge tells what to do about an error, and why where the brokers sent it.
func judge(err error) (verdict, string) {
	var code kafka.Error
	if errors.As(err, &code) {
		row := verdicts[code]
		return row.verdict, row.reason
	}
	var certificate *tls.CertificateVerificationError
	var notTLS tls.RecordHeaderError
	if errors.As(err, &certificate) || errors.As(err, &notTLS) || CertificateRefused(err) {
		return refused, "no connection by TLS"
	}
	// What is left happened on this side of the wire: no connection, no
	// leader in the metadata, no answer in time.
	return again, ""
}

// CertificateRefused tells whether a broker closed the connection because of our
// certificate, or because there was none: RFC 8446, section 6.2. crypto/tls does
// not export the alert that says so.
func CertificateRefused(err error) bool {
	var remote *net.OpError
	return errors.As(err, &remote) && remote.Op == "remote error" && strings.Contains(remote.Err.Error(), "certificate")
}

// brokerError is an error code of a broker, in the words of the table rather
// than in the library's, which are those of consumer groups.
type brokerError struct {
	error  // the code, wrapped
	reason string
}

func (e brokerError) Error() string { return e.reason }
func (e brokerError) Unwrap() error { return e.error }

// describe words an error with the table's reason.
func describe(err error) error {
	var code kafka.Error
	var described brokerError
	if _, reason := judge(err); reason != "" && errors.As(err, &code) && !errors.As(err, &described) {
		where, _, _ := strings.Cut(err.Error(), code.Error())
		return brokerError{err, fmt.Sprintf("%serror code %d, %s", where, int(code), reason)}
	}
	return err
}

// WorthAnotherTry tells whether the same request may succeed later.
func WorthAnotherTry(err error) bool {
	v, _ := judge(err)
	return v == again || v == soon
}

// inDoubt tells whether the broker may have got the request all the same, or
// may get it yet.
func inDoubt(err error) bool {
	var code kafka.Error
	if errors.As(err, &code) {
		return code == kafka.RequestTimedOut || code == kafka.NotEnoughReplicasAfterAppend || code == kafka.NetworkException
	}
	return err != nil && !errors.Is(err, protocol.ErrNoTopic) && !errors.Is(err, protocol.ErrNoPartition) && !errors.Is(err, protocol.ErrNoLeader)
}

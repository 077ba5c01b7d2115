package transaction

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/segmentio/kafka-go/protocol"
)

// TopicPartition names a partition.
type TopicPartition struct {
	Topic     string
	Partition int
}

// Record is what a batch takes. A nil key or value is Kafka's null.
type Record struct {
	Key, Value []byte
	Headers    []Header
	Time       time.Time
}

// Header is one header of a record.
type Header struct {
	Name  string
	Value []byte
}

// Batch gathers the records of one partition that are produced together, in
// Kafka's record batch format, version 2:
// https://kafka.apache.org/documentation/#recordbatch
//
// The zero value with a TopicPartition is ready for use, and so is a batch after
// Reset. A batch is not safe for concurrent use.
type Batch struct {
	TopicPartition
	// Offset is where the batch's first record is in the partition; set by
	// [Producer.Produce].
	Offset int64

	count       int
	first, last int64  // timestamps, in milliseconds
	records     []byte // encoded, not compressed
	frame       []byte // size, header and records as they are sent
}

// Append adds a record. It is copied.
func (b *Batch) Append(r *Record) {
	timestamp := r.Time.UnixMilli()
	if b.count == 0 {
		b.first, b.last = timestamp, timestamp
	}
	b.last = max(b.last, timestamp)

	delta := timestamp - b.first
	length := 1 + varintSize(delta) + varintSize(int64(b.count)) +
		bytesSize(r.Key) + bytesSize(r.Value) + varintSize(int64(len(r.Headers)))
	for i := range r.Headers {
		length += varintSize(int64(len(r.Headers[i].Name))) + len(r.Headers[i].Name) + bytesSize(r.Headers[i].Value)
	}

	b.records = binary.AppendVarint(b.records, int64(length))
	b.records = append(b.records, 0) // attributes: none are defined
	b.records = binary.AppendVarint(b.records, delta)
	b.records = binary.AppendVarint(b.records, int64(b.count))
	b.records = appendBytes(b.records, r.Key)
	b.records = appendBytes(b.records, r.Value)
	b.records = binary.AppendVarint(b.records, int64(len(r.Headers)))
	for i := range r.Headers {
		b.records = binary.AppendVarint(b.records, int64(len(r.Headers[i].Name)))
		b.records = append(b.records, r.Headers[i].Name...)
		b.records = appendBytes(b.records, r.Headers[i].Value)
	}
	b.count++
}

// Len returns the number of records.
func (b *Batch) Len() int { return b.count }

// Size returns the bytes that the batch takes in a log, before compression.
func (b *Batch) Size() int { return headerSize + len(b.records) }

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() {
	b.count, b.records, b.frame = 0, b.records[:0], b.frame[:0]
}

// Where things are in a frame: the size of the batch as the produce request
// wants it, then the batch, whose offsets are Kafka's.
const (
	sizePrefix       = 4
	atBatchLength    = sizePrefix + 8
	atLeaderEpoch    = sizePrefix + 12
	atMagic          = sizePrefix + 16
	atCRC            = sizePrefix + 17
	atAttributes     = sizePrefix + 21
	atLastOffset     = sizePrefix + 23
	atFirstTimestamp = sizePrefix + 27
	atLastTimestamp  = sizePrefix + 35
	atProducerID     = sizePrefix + 43
	atProducerEpoch  = sizePrefix + 51
	atBaseSequence   = sizePrefix + 53
	atCount          = sizePrefix + 57
	headerSize       = 61
)

// encode compresses the records into the frame. What compression makes no
// smaller is sent as it is.
func (b *Batch) encode(w *worker, transactional bool) error {
	frame := append(b.frame[:0], make([]byte, sizePrefix+headerSize)...)
	frame, codec, err := w.compress(frame, b.records)
	if err != nil {
		return err
	}
	attributes := protocol.Attributes(codec)
	if transactional {
		attributes |= protocol.Transactional
	}
	order := binary.BigEndian
	order.PutUint32(frame, uint32(len(frame)-sizePrefix))
	order.PutUint32(frame[atBatchLength:], uint32(len(frame)-atLeaderEpoch))
	order.PutUint32(frame[atLeaderEpoch:], ^uint32(0))
	frame[atMagic] = 2
	order.PutUint16(frame[atAttributes:], uint16(attributes))
	order.PutUint32(frame[atLastOffset:], uint32(b.count-1))
	order.PutUint64(frame[atFirstTimestamp:], uint64(b.first))
	order.PutUint64(frame[atLastTimestamp:], uint64(b.last))
	order.PutUint32(frame[atCount:], uint32(b.count))
	b.frame = frame
	return nil
}

// stamp says who sends the batch, and as which of the records that it has sent
// to the partition: by that the broker knows a repetition. KIP-98.
func (b *Batch) stamp(producerID int64, epoch int16, sequence int32) {
	order := binary.BigEndian
	order.PutUint64(b.frame[atProducerID:], uint64(producerID))
	order.PutUint16(b.frame[atProducerEpoch:], uint16(epoch))
	order.PutUint32(b.frame[atBaseSequence:], uint32(sequence))
	order.PutUint32(b.frame[atCRC:], crc32.Checksum(b.frame[atAttributes:], castagnoli))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func varintSize(n int64) int {
	u := uint64(n<<1) ^ uint64(n>>63)
	size := 1
	for u >= 0x80 {
		u >>= 7
		size++
	}
	return size
}

func bytesSize(b []byte) int {
	if b == nil {
		return 1
	}
	return varintSize(int64(len(b))) + len(b)
}

func appendBytes(dst, b []byte) []byte {
	if b == nil {
		return binary.AppendVarint(dst, -1)
	}
	dst = binary.AppendVarint(dst, int64(len(b)))
	return append(dst, b...)
}

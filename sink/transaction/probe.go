package transaction

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// Probe tells whether the partition may be written to, without writing to it: it
// sends a batch that every broker must refuse, its checksum being wrong. The
// refusal is success.
func Probe(ctx context.Context, client *kafka.Client, at TopicPartition) error {
	batch := Batch{TopicPartition: at}
	batch.Append(&Record{Value: []byte("rebound check"), Time: time.Now()})
	if err := batch.encode(&worker{}, false); err != nil {
		return err
	}
	batch.stamp(-1, -1, -1)
	batch.frame[atCRC] ^= 0xff
	response, err := client.RawProduce(ctx, &kafka.RawProduceRequest{
		Topic:        at.Topic,
		Partition:    at.Partition,
		RequiredAcks: kafka.RequireAll,
		RawRecords:   protocol.RawRecordSet{Reader: bytes.NewReader(batch.frame)},
	})
	if err != nil {
		return err
	}
	if errors.Is(response.Error, kafka.InvalidMessage) {
		return nil
	}
	return response.Error
}

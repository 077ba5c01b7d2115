package sink

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"
)

// Where fields stand in a record batch.
// https://kafka.apache.org/documentation/#recordbatch
const (
	baseOffsetAt = 0
	checksumAt   = 17
	attributesAt = 21
	producerIDAt = 43
)

// encode returns a record batch as it stands in a log.
func encode(attributes protocol.Attributes, offset, producerID int64, records []protocol.Record) []byte {
	for i := range records {
		records[i].Offset, records[i].Time = int64(i), time.UnixMilli(1795513916535)
	}
	var frame bytes.Buffer
	set := protocol.RecordSet{Version: 2, Attributes: attributes, Records: protocol.NewRecordReader(records...)}
	if _, err := set.WriteTo(&frame); err != nil {
		panic(err) // a buffer takes everything
	}
	batch := frame.Bytes()[4:]
	binary.BigEndian.PutUint64(batch[baseOffsetAt:], uint64(offset))
	binary.BigEndian.PutUint64(batch[producerIDAt:], uint64(producerID))
	sum := crc32.Checksum(batch[attributesAt:], crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(batch[checksumAt:], sum)
	return batch
}

// marker returns the control record that ends a transaction.
func marker(commit bool) []protocol.Record {
	key := []byte{0, 0, 0, 0}
	if commit {
		key[3] = 1
	}
	return []protocol.Record{{Key: protocol.NewBytes(key), Value: protocol.NewBytes(make([]byte, 6))}}
}

// FuzzScan has a scan read a log that the input describes, from somewhere on and
// in fetches of any size, and compares with what a simple model of the log says:
// what belongs to no transaction counts where it stands, what belongs to one
// where its commit marker stands. Batches that no broker would keep are left out:
// brokers are trusted, and kafka-go (v0.4.51) panics at some, and takes as much
// memory as others claim to need.
func FuzzScan(f *testing.F) {
	const (
		plain = iota
		written
		committed
		aborted
		kinds
	)
	f.Add([]byte{plain, 0, written, 1, written, 9, committed, 1, aborted, 9}, uint8(0), uint8(1))
	f.Add([]byte{written, 0, 0xf0 + written, 4, 0xf4 + written, 8, 0xf8 + written, 12, 0xfc + written, 16, committed, 0, committed, 1, committed, 2}, uint8(3), uint8(2))
	f.Add([]byte{written, 0x31, aborted, 1, written, 0x31, written, 0x32, committed, 2, plain, 0xf3, committed, 1}, uint8(5), uint8(3))
	f.Fuzz(func(t *testing.T, log []byte, start, together uint8) {
		var batches [][]byte
		var want []string
		open := make(map[int64][]string)
		offset := int64(0)
		for ; len(log) >= 2 && len(batches) < 100; log = log[2:] {
			kind, codec := log[0]%kinds, protocol.Attributes(max(int(log[0]/kinds)-59, 0)) // most are not compressed: it takes long
			producer, count := int64(log[1]%3), int(log[1]>>2%4)+1
			offset += int64(log[1] >> 6) // where compaction took something away
			switch kind {
			case plain, written:
				var records []protocol.Record
				for at := offset; at < offset+int64(count); at++ {
					value := fmt.Sprint(at)
					records = append(records, protocol.Record{Key: protocol.NewBytes([]byte("k")), Value: protocol.NewBytes([]byte(value))})
					if at < int64(start) {
						continue // before the begin of the scan
					}
					if kind == plain {
						want = append(want, value)
					} else {
						open[producer] = append(open[producer], value)
					}
				}
				attributes, id := codec, int64(-1)
				if kind == written {
					attributes, id = attributes|protocol.Transactional, producer
				}
				batches = append(batches, encode(attributes, offset, id, records))
				offset += int64(count)
			case committed, aborted:
				if offset >= int64(start) {
					if kind == committed {
						want = append(want, open[producer]...)
					}
					delete(open, producer)
				}
				batches = append(batches, encode(protocol.Transactional|protocol.Control, offset, producer, marker(kind == committed)))
				offset++
			}
		}
		var got []string
		s := scan{next: int64(start), open: make(map[int64][]record)}
		for fetched := range slices.Chunk(batches, int(together%8)+1) {
			log := slices.Concat(fetched...)
			var set protocol.RecordSet
			if _, err := set.ReadFrom(bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, uint32(len(log))), log...))); err != nil {
				t.Fatal(err)
			}
			next, err := s.readBatches(set.Records, func(r *record) error {
				if string(r.value) != fmt.Sprint(r.offset) {
					t.Errorf("offset %d is said to hold %q", r.offset, r.value)
				}
				got = append(got, string(r.value))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			s.next = max(next, s.next)
		}
		if !slices.Equal(got, want) {
			t.Errorf("it read %v, want %v", got, want)
		}
		if s.next != max(offset, int64(start)) && len(batches) > 0 {
			t.Errorf("it goes on at %d, want %d", s.next, offset)
		}
		for producer, records := range s.open {
			if len(records) != len(open[producer]) {
				t.Errorf("%d records of producer %d are undecided, want %d", len(records), producer, len(open[producer]))
			}
		}
	})
}

package transaction

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// What kafka-go's own decoder, which knows nothing of this package, reads from a
// frame is what was put into it.
func TestAFrameIsReadByAnotherDecoder(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_123)
	var want []Record
	for i := range 200 {
		r := Record{Key: []byte(fmt.Sprint("key", i)), Value: []byte(strings.Repeat("value ", i)), Time: at.Add(time.Duration(i*i) * time.Millisecond)}
		for h := range i % 4 {
			r.Headers = append(r.Headers, Header{fmt.Sprint("header", h), bytes.Repeat([]byte{byte(h)}, i)})
		}
		switch i % 10 {
		case 3:
			r.Key = nil
		case 5:
			r.Value = nil
		case 7:
			r.Value = []byte{}
		}
		want = append(want, r)
	}
	for _, codec := range []compress.Compression{compress.None, compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd} {
		t.Run(codec.String(), func(t *testing.T) {
			var b Batch
			for i := range want {
				b.Append(&want[i])
			}
			for range 2 { // the memory is used again
				if err := b.encode(&worker{codec: codec}, true); err != nil {
					t.Fatal(err)
				}
			}
			b.stamp(4711, 12, 99)
			if b.Len() != len(want) || b.Size() < 2000 {
				t.Errorf("%d records, %d bytes", b.Len(), b.Size())
			}
			var set protocol.RecordSet
			if _, err := set.ReadFrom(bytes.NewReader(b.frame)); err != nil {
				t.Fatal(err)
			}
			batch := set.Records.(*protocol.RecordStream).Records[0].(*protocol.RecordBatch)
			if batch.ProducerID != 4711 || batch.ProducerEpoch != 12 || batch.BaseSequence != 99 || !batch.Attributes.Transactional() ||
				batch.Attributes.Compression() != codec {
				t.Errorf("the header says %+v", batch)
			}
			for i := range want {
				mustBeRecord(t, batch, i, want[i])
			}
			if _, err := batch.ReadRecord(); err != io.EOF {
				t.Errorf("more records, or %v", err)
			}
		})
	}
}

func mustBeRecord(t *testing.T, batch *protocol.RecordBatch, i int, want Record) {
	t.Helper()
	got, err := batch.ReadRecord()
	if err != nil {
		t.Fatal(err)
	}
	key, _ := protocol.ReadAll(got.Key)
	value, _ := protocol.ReadAll(got.Value)
	if !bytes.Equal(key, want.Key) || !bytes.Equal(value, want.Value) || (got.Key == nil) != (want.Key == nil) || (got.Value == nil) != (want.Value == nil) {
		t.Errorf("record %d: key %q, value %q", i, key, value)
	}
	if !got.Time.Equal(want.Time) || got.Offset != int64(i) || len(got.Headers) != len(want.Headers) {
		t.Errorf("record %d: %v at %d with %d headers", i, got.Time, got.Offset, len(got.Headers))
	}
	for h := range got.Headers {
		if got.Headers[h].Key != want.Headers[h].Name || !bytes.Equal(got.Headers[h].Value, want.Headers[h].Value) {
			t.Errorf("record %d: header %v", i, got.Headers[h])
		}
	}
}

func TestWhatCompressionMakesNoSmallerIsSentAsItIs(t *testing.T) {
	var b Batch
	b.Append(&Record{Value: []byte("x"), Time: time.Now()})
	if err := b.encode(&worker{codec: compress.Lz4}, false); err != nil {
		t.Fatal(err)
	}
	if b.frame[atAttributes+1] != 0 || len(b.frame) != sizePrefix+b.Size() {
		t.Errorf("attributes %d, %d bytes", b.frame[atAttributes+1], len(b.frame))
	}
}

func BenchmarkEncode(b *testing.B) {
	value := []byte(`{"job_id":"abd123=","index":17,"code":"required_field","message":"uid is required","user":{"note":"` + strings.Repeat("lorem ipsum ", 35) + `"}}`)
	record := &Record{Key: []byte("user-17"), Value: value, Time: time.Now(), Headers: []Header{
		{"job", []byte("abd123=")}, {"code", []byte("required_field")}, {"id", []byte("abd123=/17")}, {"run", []byte("1")},
		{"content-type", []byte("application/json")}, {"schema", []byte("rebound.failed-user.v1")}}}
	for _, codec := range []compress.Compression{compress.None, compress.Lz4, compress.Zstd} {
		b.Run(codec.String(), func(b *testing.B) {
			var batch Batch
			c := &worker{codec: codec}
			b.ReportAllocs()
			b.SetBytes(int64(1000 * len(value)))
			for b.Loop() {
				batch.Reset()
				for range 1000 {
					batch.Append(record)
				}
				if err := batch.encode(c, true); err != nil {
					b.Fatal(err)
				}
				batch.stamp(1, 1, 1)
			}
		})
	}
}

// FuzzBatch has a decoder that shares nothing with rebound, franz-go's, read what
// was encoded.
func FuzzBatch(f *testing.F) {
	f.Add([]byte("key"), []byte("value"), "header", []byte("h"), uint8(3), int64(1795513916535))
	f.Add([]byte(nil), []byte(nil), "", []byte(nil), uint8(1), int64(0))
	f.Add([]byte{0}, bytes.Repeat([]byte("lorem "), 500), "\xff", []byte{0xff}, uint8(200), int64(-1))
	decompressor := kgo.DefaultDecompressor()
	var workers []*worker
	for _, codec := range []compress.Compression{compress.None, compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd} {
		workers = append(workers, &worker{codec: codec})
	}
	f.Fuzz(func(t *testing.T, key, value []byte, name string, header []byte, count uint8, milliseconds int64) {
		if count == 0 || milliseconds < 0 || milliseconds > 1<<50 {
			return
		}
		var b Batch
		for i := range int(count) {
			b.Append(&Record{Key: key, Value: value, Headers: []Header{{name, header}}, Time: time.UnixMilli(milliseconds + int64(i))})
		}
		for _, w := range workers {
			if err := b.encode(w, true); err != nil {
				t.Fatal(err)
			}
			b.stamp(7, 3, 11)
			var read kmsg.RecordBatch
			if err := read.ReadFrom(b.frame[sizePrefix:]); err != nil {
				t.Fatal(err)
			}
			if sum := crc32.Checksum(b.frame[atAttributes:], crc32.MakeTable(crc32.Castagnoli)); uint32(read.CRC) != sum {
				t.Fatalf("the checksum is %x, not %x", read.CRC, sum)
			}
			if read.ProducerID != 7 || read.ProducerEpoch != 3 || read.FirstSequence != 11 || read.NumRecords != int32(count) ||
				read.LastOffsetDelta != int32(count)-1 || read.FirstTimestamp != milliseconds || read.MaxTimestamp != milliseconds+int64(count)-1 {
				t.Fatalf("%+v", read)
			}
			plain, err := decompressor.Decompress(read.Records, kgo.CompressionCodecType(read.Attributes&7))
			if err != nil {
				t.Fatal(err)
			}
			reader := kbin.Reader{Src: plain}
			for i := range int(count) {
				var record kmsg.Record
				length := reader.Varint()
				if err := record.ReadFrom(append(kbin.AppendVarint(nil, length), reader.Span(int(length))...)); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(record.Key, key) || !bytes.Equal(record.Value, value) || record.OffsetDelta != int32(i) || record.TimestampDelta64 != int64(i) ||
					len(record.Headers) != 1 || record.Headers[0].Key != name || !bytes.Equal(record.Headers[0].Value, header) {
					t.Fatalf("record %d is %+v", i, record)
				}
			}
			if len(reader.Src) != 0 {
				t.Fatalf("%d bytes follow the records", len(reader.Src))
			}
		}
	})
}

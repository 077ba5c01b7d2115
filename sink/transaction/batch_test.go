package transaction

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"
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

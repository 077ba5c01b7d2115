package transaction

import (
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
	"github.com/segmentio/kafka-go/compress"
)

// compressor compresses record batches with one codec and keeps the codec's
// memory. It is not safe for concurrent use.
type compressor struct {
	codec compress.Compression
	lz4   *lz4.Writer
}

// compress appends the compressed records to dst, or the records themselves
// where that is shorter, and says which.
func (c *compressor) compress(dst, records []byte) ([]byte, compress.Compression, error) {
	if c.codec == compress.None {
		return append(dst, records...), compress.None, nil
	}
	start := len(dst)
	out := &appender{dst}
	w, err := c.writer(out)
	if err != nil {
		return nil, 0, err
	}
	if _, err := w.Write(records); err != nil {
		return nil, 0, fmt.Errorf("compress a batch with %v: %w", c.codec, err)
	}
	if err := w.Close(); err != nil {
		return nil, 0, fmt.Errorf("compress a batch with %v: %w", c.codec, err)
	}
	if len(out.bytes)-start >= len(records) {
		return append(out.bytes[:start], records...), compress.None, nil
	}
	return out.bytes, c.codec, nil
}

// writer returns the codec's writer. kafka-go's for lz4 holds blocks of 4 MiB
// and a checksum that the batch's own makes redundant; ours has the 64 KiB
// blocks of Kafka's Java client.
func (c *compressor) writer(w io.Writer) (io.WriteCloser, error) {
	if c.codec != compress.Lz4 {
		return c.codec.Codec().NewWriter(w), nil
	}
	if c.lz4 == nil {
		c.lz4 = lz4.NewWriter(w)
		return c.lz4, c.lz4.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false))
	}
	c.lz4.Reset(w)
	return c.lz4, nil
}

// appender is a writer that appends.
type appender struct{ bytes []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.bytes = append(a.bytes, p...)
	return len(p), nil
}

package transaction

import (
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/segmentio/kafka-go/compress"
	"golang.org/x/sync/errgroup"
)

// Compressor compresses record batches, as many at once as there are cores,
// for any number of producers. It keeps a codec's memory for each core, however
// many producers share it. It is safe for concurrent use.
type Compressor struct {
	codec compress.Compression
	// idle holds what a core needs; whoever takes one out puts it back.
	idle chan *worker
}

// NewCompressor returns a compressor for a codec.
func NewCompressor(codec compress.Compression) *Compressor {
	cores := runtime.GOMAXPROCS(0)
	c := &Compressor{codec, make(chan *worker, cores)}
	for range cores {
		c.idle <- &worker{codec: codec}
	}
	return c
}

// encode compresses batches and makes them ready to be stamped and sent.
func (c *Compressor) encode(batches []*Batch, transactional bool) error {
	var group errgroup.Group
	for _, b := range batches {
		w := <-c.idle
		group.Go(func() error {
			defer func() { c.idle <- w }()
			return b.encode(w, transactional)
		})
	}
	return group.Wait()
}

// worker compresses one batch at a time and keeps the codec's memory, which
// the pools of kafka-go's codecs give up at each garbage collection.
type worker struct {
	codec  compress.Compression
	writer resettable
}

// resettable is what the codecs' writers have in common.
type resettable interface {
	io.WriteCloser
	Reset(io.Writer)
}

// compress appends the compressed records to dst, or the records themselves
// where that is shorter, and says which.
func (w *worker) compress(dst, records []byte) ([]byte, compress.Compression, error) {
	if w.codec == compress.None {
		return append(dst, records...), compress.None, nil
	}
	start := len(dst)
	out := &appender{dst}
	compressing, err := w.open(out)
	if err != nil {
		return nil, 0, err
	}
	if _, err := compressing.Write(records); err != nil {
		return nil, 0, fmt.Errorf("compress a batch with %v: %w", w.codec, err)
	}
	if err := compressing.Close(); err != nil {
		return nil, 0, fmt.Errorf("compress a batch with %v: %w", w.codec, err)
	}
	if len(out.bytes)-start >= len(records) {
		return append(out.bytes[:start], records...), compress.None, nil
	}
	return out.bytes, w.codec, nil
}

// open returns the codec's writer, which writes to out.
func (w *worker) open(out io.Writer) (io.WriteCloser, error) {
	if w.codec == compress.Snappy {
		return w.codec.Codec().NewWriter(out), nil
	}
	if w.writer == nil {
		var err error
		if w.writer, err = newWriter(w.codec); err != nil {
			return nil, fmt.Errorf("compress with %v: %w", w.codec, err)
		}
	}
	w.writer.Reset(out)
	return w.writer, nil
}

// newWriter returns a writer with little memory. kafka-go's for lz4 holds
// blocks of 4 MiB, and a checksum that the batch's own makes redundant; ours has
// the 64 KiB blocks of Kafka's Java client.
func newWriter(codec compress.Compression) (resettable, error) {
	switch codec {
	case compress.Lz4:
		w := lz4.NewWriter(nil)
		return w, w.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false))
	case compress.Zstd:
		return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
	case compress.Gzip:
		return gzip.NewWriter(nil), nil
	}
	return nil, errors.New("there is no such codec")
}

// appender is a writer that appends.
type appender struct{ bytes []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.bytes = append(a.bytes, p...)
	return len(p), nil
}

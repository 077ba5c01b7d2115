package sink

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"rebound/pipeline"
)

// Lines is the sink of the dry run: each message is one JSON object on a line,
// with the members topic, key, headers and value, all text as kcat -J has it: so
// no tool on the way changes a number or an escape in the value. A dead letter
// that is not UTF-8 has value_base64 instead. Nothing is recorded: each run
// begins at page one as run 1.
//
// Lines is safe for concurrent use; the messages of a page stay together.
type Lines struct {
	topics Topics
	mu     sync.Mutex
	out    *bufio.Writer
	line   []byte
}

// NewLines returns a sink that writes to w.
func NewLines(w io.Writer, topics Topics) *Lines {
	return &Lines{topics: topics, out: bufio.NewWriterSize(w, 64<<10)}
}

// Limits returns the sizes that a topic takes by default.
func (l *Lines) Limits() pipeline.Limits {
	return pipeline.Limits{Failure: defaultMaxBytes - batchOverhead, DeadLetter: defaultMaxBytes - batchOverhead}
}

// Begin knows nothing of any job. See [pipeline.Sink].
func (l *Lines) Begin(context.Context, string) (pipeline.Publication, pipeline.Progress, error) {
	return (*linesPublication)(l), pipeline.Progress{}, nil
}

type linesPublication Lines

func (l *linesPublication) Begin(int) {}

func (l *linesPublication) Publish(_ context.Context, messages []pipeline.Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range messages {
		l.line = (*Lines)(l).appendLine(l.line[:0], &messages[i])
		if _, err := l.out.Write(l.line); err != nil {
			return outputError(err)
		}
	}
	return nil
}

func (l *linesPublication) Commit(context.Context, pipeline.Progress) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return outputError(l.out.Flush())
}

func (l *linesPublication) Close(context.Context) error { return nil }

// outputError says what became of standard output.
func outputError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EPIPE):
		return errors.New("standard output was closed before everything was written: what reads it (head, say) has ended")
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("standard output: %w: the file is cut short; make room and run again", err)
	}
	return fmt.Errorf("standard output: %w", err)
}

func (l *Lines) appendLine(dst []byte, m *pipeline.Message) []byte {
	topic := l.topics.Failures
	if m.Topic == pipeline.DeadLetters {
		topic = l.topics.DeadLetters
	}
	dst = append(dst, `{"topic":`...)
	dst = appendString(dst, topic)
	dst = append(dst, `,"key":`...)
	dst = appendString(dst, m.Key)
	dst = append(dst, `,"headers":{`...)
	for i, h := range m.Headers {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, h.Name)
		dst = append(dst, ':')
		dst = appendString(dst, h.Value)
	}
	if utf8.Valid(m.Value) {
		dst = append(dst, `},"value":`...)
		dst = appendString(dst, m.Value)
	} else {
		dst = append(dst, `},"value_base64":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, m.Value)
		dst = append(dst, '"')
	}
	return append(dst, "}\n"...)
}

// appendString appends UTF-8 text as a JSON string.
func appendString[T ~[]byte | ~string](dst []byte, text T) []byte {
	dst, _ = jsontext.AppendQuote(dst, text)
	return dst
}

package pipeline

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
)

// Published gives back the messages of one run of a job, as readers of what is
// committed see them.
type Published interface {
	// Peek returns the next message in the partition of the topic that the key
	// belongs to; nil at its end. It is valid until the next call.
	Peek(ctx context.Context, topic Topic, key []byte) (*Message, error)
	// Advance goes past that message.
	Advance(topic Topic, key []byte)
	// Rest calls each for every message that Advance has not gone past.
	Rest(ctx context.Context, each func(*Message)) error
}

// Finding is a number of failures and the ids of the first few.
type Finding struct {
	Count int64
	IDs   []string
}

// maxIDs is how many ids a finding names.
const maxIDs = 5

func (f *Finding) add(id string) {
	f.Count++
	if len(f.IDs) < maxIDs {
		f.IDs = append(f.IDs, id)
	}
}

// Report compares what is published of a run with what the API says.
type Report struct {
	// Expected counts the failures that the API has, Present those that are
	// published as they should be.
	Expected, Present int64
	// Missing are not published, Repeated more than once, Different are with
	// another key, value or header, and Unexpected are published though the API
	// does not have them.
	Missing, Repeated, Different, Unexpected Finding
}

// OK tells whether every failure is there, once, and nothing else.
func (r *Report) OK() bool {
	return r.Present == r.Expected && r.Missing.Count+r.Repeated.Count+r.Different.Count+r.Unexpected.Count == 0
}

// Verify reads the job's pages again, side by side with what was published of
// the run, and compares both message by message. It needs the memory of a page.
func Verify(ctx context.Context, source Source, published Published, run Run, limits Limits) (*Report, error) {
	var report Report
	var batch Batch
	index := int64(0)
	for page, err := range source.Pages(ctx, run.JobID, "") {
		if err != nil {
			return nil, err
		}
		for from := 0; from < len(page.Results); {
			from = batch.Transform(run, page, from, index, 0, limits)
			for messages := range eachResult(batch.Messages) {
				if err := report.compare(ctx, published, messages); err != nil {
					return nil, err
				}
			}
		}
		index += int64(len(page.Results))
	}
	err := published.Rest(ctx, func(m *Message) {
		if at, ok := positionOf(m); ok && at.index < index {
			report.Repeated.add(at.id)
		} else {
			report.Unexpected.add(at.id)
		}
	})
	return &report, err
}

// eachResult yields the messages of each result: one, or the parts of a dead
// letter.
func eachResult(messages []Message) func(yield func([]Message) bool) {
	return func(yield func([]Message) bool) {
		for len(messages) > 0 {
			n := 1
			for n < len(messages) && bytes.Equal(header(&messages[n], "id"), header(&messages[0], "id")) {
				n++
			}
			if !yield(messages[:n]) {
				return
			}
			messages = messages[n:]
		}
	}
}

// compare looks for the messages of one result. Within a partition a run's
// messages stand in the order of their positions, so one that is not next is
// not there.
func (r *Report) compare(ctx context.Context, published Published, messages []Message) error {
	r.Expected++
	missing, different := false, false
	for i := range messages {
		want := &messages[i]
		at, _ := positionOf(want)
		for {
			got, err := published.Peek(ctx, want.Topic, want.Key)
			if err != nil {
				return err
			}
			if got == nil {
				missing = true
				break
			}
			gotAt, ok := positionOf(got)
			if !ok {
				r.Unexpected.add(gotAt.id)
				published.Advance(want.Topic, want.Key)
				continue
			}
			order := gotAt.compare(at)
			if order > 0 {
				missing = true
				break
			}
			if order < 0 {
				r.Repeated.add(gotAt.id)
			} else if !got.equal(want) {
				different = true
			}
			published.Advance(want.Topic, want.Key)
			if order == 0 {
				break
			}
		}
	}
	id := string(header(&messages[0], "id"))
	switch {
	case missing:
		r.Missing.add(id)
	case different:
		r.Different.add(id)
	default:
		r.Present++
	}
	return nil
}

// position is where in a job a message belongs.
type position struct {
	id          string
	index, part int64
}

func (p position) compare(q position) int {
	return cmp.Or(cmp.Compare(p.index, q.index), cmp.Compare(p.part, q.part))
}

func positionOf(m *Message) (position, bool) {
	id := header(m, "id")
	at := position{id: string(id)}
	var err error
	if at.index, err = strconv.ParseInt(string(id[bytes.LastIndexByte(id, '/')+1:]), 10, 64); err != nil {
		return at, false
	}
	if part := header(m, "part"); part != nil {
		at.part, err = strconv.ParseInt(string(part), 10, 64)
	}
	return at, err == nil
}

func header(m *Message, name string) []byte {
	for i := range m.Headers {
		if m.Headers[i].Name == name {
			return m.Headers[i].Value
		}
	}
	return nil
}

// equal compares all but the trace, which differs from one attempt to the next.
func (m *Message) equal(other *Message) bool {
	untraced := func(headers []Header) []Header {
		return slices.DeleteFunc(slices.Clone(headers), func(h Header) bool { return h.Name == traceparent })
	}
	return bytes.Equal(m.Key, other.Key) && bytes.Equal(m.Value, other.Value) &&
		slices.EqualFunc(untraced(m.Headers), untraced(other.Headers), func(a, b Header) bool {
			return a.Name == b.Name && bytes.Equal(a.Value, b.Value)
		})
}

// String sums the report up in a line.
func (r *Report) String() string {
	return fmt.Sprintf("expected %d, present %d, missing %d, repeated %d, different %d, unexpected %d",
		r.Expected, r.Present, r.Missing.Count, r.Repeated.Count, r.Different.Count, r.Unexpected.Count)
}

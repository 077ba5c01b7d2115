package pipeline

import (
	"iter"
	"slices"
	"strconv"
	"strings"
)

// Topic says which of the two kinds of message a [Message] is; the sink knows
// where each kind goes.
type Topic int

const (
	// Failures takes every failure that names what failed, a user or an event.
	Failures Topic = iota
	// DeadLetters takes, as received, what could not be made a failure's
	// message.
	DeadLetters
)

// Why a result became a dead letter: the values of the reason header.
const (
	ReasonNotAnObject = "not_an_object"
	ReasonNoUser      = "no_user"
	ReasonNoEvent     = "no_event"
	ReasonTooLarge    = "too_large"
	ReasonTooDeep     = "too_deep"
)

// Message is one message as its consumer gets it.
type Message struct {
	Topic      Topic
	Key, Value []byte
	Headers    []Header
}

// Header is one header of a message. Values are UTF-8.
type Header struct {
	Name  string
	Value []byte
}

// Limits holds the largest message, in bytes of key, value and headers
// together, that each topic takes.
type Limits struct {
	Failure    int
	DeadLetter int
}

// Batch turns pages into messages and owns the memory of those of one part of a
// page, or of a small page whole. The zero value is ready for use. A batch may be used
// again and again; it is not safe for concurrent use.
type Batch struct {
	// Messages holds the messages that the last call of Transform made, in the
	// page's order. A dead letter that the topic does not take whole is
	// several messages.
	Messages []Message
	// Failures and DeadLetters count the results that became either.
	Failures, DeadLetters int64
	// End is the position in the job after the last result.
	End int64
	// EndsPage tells that the page's last result is among them.
	EndsPage bool
	// Page is the page behind the messages, without its results.
	Page Page

	codes, reasons counts // failures by code, dead letters by reason
	bytes          []byte
	headers        []Header
	compact        []byte // a member before something in it is hidden
}

// batchBytes is how many bytes of results, as received, a batch takes at least
// before it leaves the rest of the page to the next one: what a core's cache
// holds, so that a batch is still in it when it is encoded.
const batchBytes = 128 << 10

// Transform replaces the batch by the messages of a page's results from number
// from on, until the page ends or the batch is full, and returns the number of
// the first result that it leaves to the next batch. The page's first result
// stands at position index of the job; results before position skip were
// published earlier and are left out. The messages are valid until the next call
// and do not refer to the page.
func (b *Batch) Transform(run Run, page *Page, from int, index, skip int64, limits Limits) (next int) {
	b.Messages, b.headers, b.bytes = b.Messages[:0], b.headers[:0], b.bytes[:0]
	b.Failures, b.DeadLetters = 0, 0
	if b.codes == nil {
		b.codes, b.reasons = make(counts), make(counts)
	}
	b.codes.reset()
	b.reasons.reset()
	b.Page = *page
	b.Page.Results = nil

	size := 0
	for next = from; next < len(page.Results) && size < batchBytes; next++ {
		size += len(page.Results[next].Raw)
	}
	b.End = index + int64(next)
	b.EndsPage = next == len(page.Results)

	// Room for everything at once, so that each result is copied only once.
	perResult := 2*len(run.JobID) + 128
	b.bytes = slices.Grow(b.bytes, size+(next-from)*perResult)
	b.headers = slices.Grow(b.headers, (next-from)*run.headers)
	for i := from; i < next; i++ {
		if at := index + int64(i); at >= skip {
			b.add(&run, &page.Results[i], at, limits)
		}
	}
	return next
}

func (b *Batch) add(run *Run, result *Result, index int64, limits Limits) {
	switch {
	case result.TooDeep:
		b.addDeadLetter(run, result, index, ReasonTooDeep, limits)
	case !result.Object:
		b.addDeadLetter(run, result, index, ReasonNotAnObject, limits)
	case result.Subject == nil:
		b.addDeadLetter(run, result, index, run.form.Kind.reasonNone(), limits)
	case !b.addFailure(run, result, index, limits):
		b.addDeadLetter(run, result, index, ReasonTooLarge, limits)
	default:
		b.Failures++
	}
}

// addFailure reports false, and adds nothing, where the message is larger than
// its topic takes.
func (b *Batch) addFailure(run *Run, result *Result, index int64, limits Limits) bool {
	messages, headers, room := len(b.Messages), len(b.headers), len(b.bytes)

	key := run.key
	if result.UID != nil {
		start := len(b.bytes)
		if run.form.Fields == nil {
			b.bytes = append(b.bytes, unquote(result.UID)...)
		} else {
			b.bytes = run.form.Fields.appendUID(b.bytes, run.form.Kind, result.UID)
		}
		if len(b.bytes) > start {
			key = slices.Clip(b.bytes[start:])
		}
	}

	start := len(b.bytes)
	b.bytes = append(b.bytes, run.valuePrefix...)
	b.bytes = strconv.AppendInt(b.bytes, index, 10)
	b.bytes = append(b.bytes, `,"code":"`...)
	codeStart := len(b.bytes)
	b.bytes = appendCode(b.bytes, result.Code)
	codeEnd := len(b.bytes)
	b.bytes = append(b.bytes, `","message":`...)
	b.bytes = appendMessage(b.bytes, result.Message)
	b.bytes = append(b.bytes, run.subject...)
	b.appendMember(run, run.form.Kind.Subject(), result.Subject)
	if result.Shared != nil {
		b.bytes = append(b.bytes, `,"shared":`...)
		b.appendMember(run, "shared", result.Shared)
	}
	b.bytes = append(b.bytes, '}')
	value := b.bytes[start:len(b.bytes):len(b.bytes)]
	code := value[codeStart-start : codeEnd-start : codeEnd-start]

	id := b.id(run, index)
	b.headers = append(b.headers,
		Header{"job", run.job},
		Header{"code", code},
		Header{"id", id},
		Header{"run", run.number},
		Header{"content-type", contentType},
		Header{"schema", run.schema},
	)
	if run.cloudEvent != nil {
		b.headers = append(append(b.headers, run.cloudEvent...), Header{"ce_id", id})
	}
	b.headers = append(b.headers, run.context...)
	message := Message{Failures, key, value, slices.Clip(b.headers[headers:])}
	if message.Size() > limits.Failure {
		b.Messages, b.headers, b.bytes = b.Messages[:messages], b.headers[:headers], b.bytes[:room]
		return false
	}
	b.Messages = append(b.Messages, message)
	b.codes.add(code)
	return true
}

var contentType = []byte("application/json")

// appendMember appends the value of a result's member, in its normal form and
// without what the run hides in it.
func (b *Batch) appendMember(run *Run, name string, value []byte) {
	if run.form.Fields == nil {
		b.bytes = appendCompact(b.bytes, value)
		return
	}
	b.compact = appendCompact(b.compact[:0], value)
	b.bytes = run.form.Fields.appendShown(b.bytes, b.compact, run.form.Fields.within(run.form.Kind, name))
}

// addDeadLetter adds the result as received, in parts where it is larger than
// the topic takes.
func (b *Batch) addDeadLetter(run *Run, result *Result, index int64, reason string, limits Limits) {
	b.DeadLetters++
	b.reasons.add([]byte(reason))
	headers := append([]Header{
		{"job", run.job},
		{"id", slices.Clone(b.id(run, index))},
		{"run", run.number},
		{"reason", []byte(reason)},
	}, run.context...)
	value := result.Raw
	if run.form.Fields != nil {
		var ok bool
		if value, ok = run.form.Fields.redact(run.form.Kind, result); !ok {
			headers = append(headers, Header{"withheld", strconv.AppendInt(nil, int64(len(result.Raw)), 10)})
		}
	}
	whole := Message{DeadLetters, run.key, value, headers}
	for part := range whole.Split(limits.DeadLetter) {
		part.Value = b.own(part.Value)
		b.Messages = append(b.Messages, part)
	}
}

// Split yields the message, or parts of it that are no larger than limit each,
// numbered by the headers part and parts.
func (m Message) Split(limit int) iter.Seq[Message] {
	return func(yield func(Message) bool) {
		if m.Size() <= limit {
			yield(m)
			return
		}
		overhead := m.Size() - len(m.Value) + 2*len("parts") + 2*len("1000000") + 2*headerOverhead
		room := max(limit-overhead, 1)
		parts := (len(m.Value) + room - 1) / room
		for i := range parts {
			part := m
			part.Value = m.Value[i*room : min((i+1)*room, len(m.Value))]
			part.Headers = append(slices.Clip(m.Headers),
				Header{"part", strconv.AppendInt(nil, int64(i+1), 10)},
				Header{"parts", strconv.AppendInt(nil, int64(parts), 10)})
			if !yield(part) {
				return
			}
		}
	}
}

// id returns the failure's id, {job_id}/{index}, the same in every run.
func (b *Batch) id(run *Run, index int64) []byte {
	start := len(b.bytes)
	b.bytes = append(b.bytes, run.job...)
	b.bytes = append(b.bytes, '/')
	b.bytes = strconv.AppendInt(b.bytes, index, 10)
	return slices.Clip(b.bytes[start:])
}

// own copies text into the batch's memory.
func (b *Batch) own(text []byte) []byte {
	start := len(b.bytes)
	b.bytes = append(b.bytes, text...)
	return slices.Clip(b.bytes[start:])
}

// Kafka counts a record's and each header's lengths in varints; these are
// their upper bounds.
const (
	recordOverhead = 36
	headerOverhead = 10
)

// Size returns an upper bound of the bytes that the message takes in a topic,
// before compression.
func (m *Message) Size() int {
	size := recordOverhead + len(m.Key) + len(m.Value)
	for i := range m.Headers {
		size += headerOverhead + len(m.Headers[i].Name) + len(m.Headers[i].Value)
	}
	return size
}

// Run names one publication of a job: what each of its messages says of it.
type Run struct {
	// JobID is the job's id as the API gives it.
	JobID string
	// Number is 1 for the first publication and one more for each replay.
	Number int

	form                          Form
	job, key, number, valuePrefix []byte
	subject, schema               []byte
	cloudEvent                    []Header
	headers                       int // that a failure has at most
	// context is the header traceparent, where there is a trace.
	context []Header
}

// NewRun returns the run with the given number of the job, whose messages have
// the form.
func NewRun(form Form, jobID string, number int) Run {
	run := Run{JobID: jobID, Number: number, form: form}
	run.subject = []byte(`,"` + form.Kind.Subject() + `":`)
	run.schema = []byte(form.Kind.Schema())
	if run.cloudEvent = form.cloudEvent(jobID); run.cloudEvent != nil {
		run.headers = len(run.cloudEvent) + 1
	}
	run.headers += 7
	run.job = []byte(strings.ToValidUTF8(jobID, "\uFFFD"))
	run.key = run.job
	run.number = strconv.AppendInt(nil, int64(number), 10)
	run.valuePrefix = append(appendQuote([]byte(`{"job_id":`), run.job), `,"index":`...)
	return run
}

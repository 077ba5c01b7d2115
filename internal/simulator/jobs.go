package simulator

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strconv"
	"time"
)

// Kind says what a job imports.
type Kind string

// The kinds of jobs, as they stand in paths. The zero value means users.
const (
	Users  Kind = "users"
	Events Kind = "events"
)

func kindOf(text string) Kind {
	if text == "" {
		return Users
	}
	return Kind(text)
}

// jobKey names a job.
type jobKey struct {
	kind Kind
	id   string
}

// job is an import job: one that was posted or one that was conjured up.
type job interface {
	id() string
	pageSize() int
	processing() bool
	// imported and failures count users.
	imported() int64
	failures() int64
	// claimed is what total_records says.
	claimed() int64
	// appendFailure appends the result at position i of the errors.
	appendFailure(dst []byte, i int64) []byte
	metadata() map[string]any
}

// Conjured describes a job whose failures are made up as they are asked for: it
// takes no memory, whatever its size.
type Conjured struct {
	Kind     Kind
	ID       string
	Failures int64
	// PageSize is how many results a page has; 0 is the simulator's.
	PageSize int
	// Processing is how long the job is processed from now on.
	Processing time.Duration
	// Plain gives every user the same form, about 530 bytes: for measurements.
	Plain bool
	// Claimed is what total_records says; 0 is the truth.
	Claimed int64
	// RecordBytes is the size of a plain result; 0 means 530.
	RecordBytes int
}

// ParseConjured reads a job such as "abd123=:12345" or "abd123=:12345:500", the
// last being the page size.
func ParseConjured(text string) (Conjured, error) {
	var c Conjured
	fields := splitLast(text, ':', 3)
	if len(fields) < 2 || fields[0] == "" {
		return c, fmt.Errorf("%q: write a job as ID:FAILURES or ID:FAILURES:PAGE_SIZE", text)
	}
	c.ID = fields[0]
	var err error
	if c.Failures, err = strconv.ParseInt(fields[1], 10, 64); err != nil || c.Failures < 0 {
		return c, fmt.Errorf("%q: %q is no number of failures", text, fields[1])
	}
	if len(fields) == 3 {
		if c.PageSize, err = strconv.Atoi(fields[2]); err != nil || c.PageSize < 1 {
			return c, fmt.Errorf("%q: %q is no page size", text, fields[2])
		}
	}
	return c, nil
}

// splitLast splits text at up to n-1 separators, of which an id has none.
func splitLast(text string, separator byte, n int) []string {
	var fields []string
	begin := 0
	for i := 0; i < len(text) && len(fields) < n-1; i++ {
		if text[i] == separator {
			fields = append(fields, text[begin:i])
			begin = i + 1
		}
	}
	return append(fields, text[begin:])
}

// Conjure adds a job, or replaces the one with its id.
func (s *Simulator) Conjure(c Conjured) {
	if c.PageSize == 0 {
		c.PageSize = s.options.PageSize
	}
	c.Kind = kindOf(string(c.Kind))
	hash := fnv.New64a()
	hash.Write([]byte(c.ID))
	now := time.Now()
	j := &conjuredJob{
		Conjured: c,
		seed:     mix(hash.Sum64() ^ mix(s.options.Seed)),
		garbage:  s.options.Faults[Garbage],
		created:  now,
		finished: now.Add(c.Processing),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs[jobKey{c.Kind, c.ID}] = j
}

type conjuredJob struct {
	Conjured
	seed              uint64
	garbage           float64
	created, finished time.Time
}

func (j *conjuredJob) id() string       { return j.ID }
func (j *conjuredJob) pageSize() int    { return j.PageSize }
func (j *conjuredJob) processing() bool { return time.Now().Before(j.finished) }
func (j *conjuredJob) imported() int64  { return 0 }
func (j *conjuredJob) failures() int64  { return j.Failures }

func (j *conjuredJob) claimed() int64 {
	if j.Claimed > 0 {
		return j.Claimed
	}
	return j.Failures
}

func (j *conjuredJob) metadata() map[string]any {
	return metadata(j.ID, j.created, j.finished, j.Failures)
}

func metadata(id string, created, finished time.Time, failures int64) map[string]any {
	const format = "2006-01-02T15:04:05.000Z"
	m := map[string]any{"id": id, "status": "PROCESSING", "created": created.UTC().Format(format)}
	if time.Now().Before(finished) {
		return m
	}
	m["finished"] = finished.UTC().Format(format)
	m["status"] = "COMPLETED"
	if failures > 0 {
		m["status"] = "FAILED"
	}
	return m
}

// postedJob is an import that somebody posted.
type postedJob struct {
	jobID             string
	size              int
	accepted          []json.RawMessage
	failed            [][]byte // results
	created, finished time.Time
}

func (j *postedJob) id() string       { return j.jobID }
func (j *postedJob) pageSize() int    { return j.size }
func (j *postedJob) processing() bool { return time.Now().Before(j.finished) }
func (j *postedJob) imported() int64  { return int64(len(j.accepted)) }
func (j *postedJob) failures() int64  { return int64(len(j.failed)) }
func (j *postedJob) claimed() int64   { return j.failures() }
func (j *postedJob) metadata() map[string]any {
	return metadata(j.jobID, j.created, j.finished, j.failures())
}
func (j *postedJob) appendFailure(dst []byte, i int64) []byte {
	return append(dst, j.failed[i]...)
}

// newJobID returns an id that looks like FullStory's.
func (s *Simulator) newJobID() string {
	s.created++
	var id [5]byte
	binary.BigEndian.PutUint32(id[:], uint32(mix(s.options.Seed+uint64(s.created))))
	id[4] = byte(s.created)
	return base64.StdEncoding.EncodeToString(id[:])
}

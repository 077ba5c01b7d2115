package pipeline

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Order asks for the publication of a job.
type Order struct {
	JobID string
	Kind  Kind
	// Replay asks for a new run from page one, whatever was published before.
	Replay bool
	// Place is where the order stands in the jobs topic; nil for one that
	// stands nowhere. An order with a place may be carried out again after a
	// crash or a hand-over and still begins one run at most.
	Place *Place
	// Last tells that nobody tries again after this: whatever ends the run
	// early is recorded as the job's failure.
	Last bool
}

// JobKey tells jobs apart: the ids of one kind of jobs may be those of the
// other's.
type JobKey struct {
	Kind Kind
	ID   string
}

// Key returns the job's.
func (o Order) Key() JobKey { return JobKey{o.Kind, o.JobID} }

// Key returns the job's.
func (p Progress) Key() JobKey { return JobKey{p.Kind, p.JobID} }

// CheckJobID tells what keeps a job id from being asked for.
func CheckJobID(id string) error {
	switch {
	case id == "":
		return errors.New("a job id is empty")
	case id == "." || id == "..":
		return fmt.Errorf("%q is no job id", id)
	case utf8.RuneCountInString(id) > 512:
		return fmt.Errorf("a job id has %d characters, 512 are allowed: %.40q…", utf8.RuneCountInString(id), id)
	case strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\uFFFD' }):
		return fmt.Errorf("job id %q holds white space, control characters or invalid UTF-8", id)
	}
	return nil
}

// Place is where an order stands in the jobs topic. Time, which is the record's,
// tells a topic that was made anew from the one before.
type Place struct {
	Partition int
	Offset    int64
	Time      time.Time
}

// replays says which orders for a replay are carried out or begun: of each
// partition of the jobs topic the newest, as PARTITION/OFFSET@MILLISECONDS,
// separated by spaces.
type replays string

func (r replays) each(visit func(partition int, offset, milliseconds int64)) {
	for _, mark := range strings.Fields(string(r)) {
		var partition int
		var offset, milliseconds int64
		if n, _ := fmt.Sscanf(mark, "%d/%d@%d", &partition, &offset, &milliseconds); n == 3 {
			visit(partition, offset, milliseconds)
		}
	}
}

// has tells whether the order that stands there is carried out or begun.
func (r replays) has(place *Place) bool {
	if place == nil {
		return false
	}
	known := false
	r.each(func(partition int, offset, milliseconds int64) {
		known = known || partition == place.Partition && offset >= place.Offset && milliseconds >= place.Time.UnixMilli()
	})
	return known
}

// with returns r with the order that stands there.
func (r replays) with(place *Place) replays {
	if place == nil {
		return r
	}
	milliseconds := place.Time.UnixMilli()
	var marks strings.Builder
	r.each(func(partition int, offset, latest int64) {
		if partition != place.Partition {
			fmt.Fprintf(&marks, "%d/%d@%d ", partition, offset, latest)
		} else if offset < place.Offset {
			// Producers' clocks differ; the offsets are in order.
			milliseconds = max(milliseconds, latest)
		}
	})
	fmt.Fprintf(&marks, "%d/%d@%d", place.Partition, place.Offset, milliseconds)
	return replays(marks.String())
}

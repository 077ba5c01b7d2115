package fleet

import (
	"sync"
	"time"

	"rebound/source"
)

// share is this instance's part of the group's rate limit: as large as its part
// of the jobs topic's partitions.
//
// The parts never add up to more than the limit, although everyone learns at
// another moment that they have changed. A part is good for handOver after the
// coordinator has last confirmed the membership; one that grows does so handOver
// after the change. A rebalance is not over before every member has heard of it
// or was dropped for its silence: so whoever had the difference before has let go
// of it by then, be it that its process was stopped in between. Only who is new
// and finds nobody in the group need not wait. It is safe for concurrent use.
type share struct {
	bucket    *source.Bucket
	perSecond float64
	burst     int

	mu         sync.Mutex
	owned, of  int
	applied    float64 // the part that the bucket has
	wanted     float64
	wantedFrom time.Time
	generation int32 // the last one; 0 before the first
	confirmed  time.Time
}

// handOver is how long a part of the limit belongs to nobody while it passes
// from one instance to another.
const handOver = 3 * time.Second

// set takes over what a generation gives this instance: so many partitions of
// all. Alone says that nobody else is in the group.
func (s *share) set(owned, of int, generation int32, alone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.applied
	isNew := s.generation == 0
	if generation != s.generation+1 {
		before = 0
	}
	s.generation = generation
	s.owned, s.of = owned, of
	s.wanted = float64(owned) / float64(of)
	s.wantedFrom = time.Now()
	if !alone || !isNew {
		s.wantedFrom = s.wantedFrom.Add(handOver)
	}
	s.applied = min(before, s.wanted)
	s.apply()
}

// renew notes that the membership was confirmed by an answer to a question that
// was asked at that time.
func (s *share) renew(asked time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.confirmed = asked
	if !asked.Before(s.wantedFrom) {
		s.applied = s.wanted
	}
	s.apply()
}

func (s *share) apply() {
	burst := int(float64(s.burst) * s.applied)
	if s.applied > 0 {
		burst = max(burst, 1)
	}
	s.bucket.Share(s.perSecond*s.applied, burst, s.confirmed.Add(handOver))
}

func (s *share) partitions() (owned, of int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owned, s.of
}

// unconfirmed returns for how long the membership was not confirmed.
func (s *share) unconfirmed() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.confirmed)
}

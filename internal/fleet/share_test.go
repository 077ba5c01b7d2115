package fleet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/segmentio/kafka-go"

	"rebound/source"
)

// member is an instance as far as the rate limit goes. It is stubborn: it asks
// all the time, and hears of everything late.
type member struct {
	share *share
	alive bool
	heard int32 // the generation that it knows
}

// TestTheGroupNeverExceedsTheLimit has members come, go, crash and sleep, each
// hearing of it at another time, while all ask as often as they may.
func TestTheGroupNeverExceedsTheLimit(t *testing.T) {
	const perSecond, burst, partitions = 100, 12, 12
	for seed := range uint64(10) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 7))
				ctx, stop := context.WithCancel(t.Context())
				var mu sync.Mutex
				var requests []time.Time
				var asking sync.WaitGroup
				var group sync.Mutex // over all that follows
				var members []*member
				join := func() {
					m := &member{&share{bucket: source.NewBucket(0, 0), perSecond: perSecond, burst: burst}, true, 0}
					members = append(members, m)
					for range 10 {
						asking.Go(func() {
							for m.share.bucket.Wait(ctx) == nil {
								mu.Lock()
								requests = append(requests, time.Now())
								mu.Unlock()
							}
						})
					}
				}
				generation := int32(0)
				rebalance := func() {
					// Nobody gets a share before everyone who lives has stopped to
					// confirm the old one: the group is sorted out by then.
					group.Lock()
					generation++
					now := generation
					group.Unlock()
					time.Sleep(time.Duration(random.IntN(1000)) * time.Millisecond)
					group.Lock()
					defer group.Unlock()
					rest := partitions
					for i, m := range members {
						part := rest / (len(members) - i)
						rest -= part
						alone := len(members) == 1
						late := time.Duration(random.IntN(200)) * time.Millisecond
						if random.IntN(5) == 0 {
							late = time.Duration(random.IntN(8000)) * time.Millisecond
						}
						time.AfterFunc(late, func() {
							group.Lock()
							defer group.Unlock()
							if m.alive && m.heard < now && now == generation {
								m.heard = now
								m.share.set(part, partitions, now, alone)
							}
						})
					}
				}
				// The coordinator confirms members of its present generation only.
				heartbeats := time.NewTicker(time.Second / 2)
				defer heartbeats.Stop()
				asking.Go(func() {
					for ctx.Err() == nil {
						select {
						case <-heartbeats.C:
						case <-ctx.Done():
						}
						group.Lock()
						for _, m := range members {
							if m.alive && m.heard == generation {
								m.share.renew(time.Now())
							}
						}
						group.Unlock()
					}
				})
				join()
				rebalance()
				for range 30 {
					pass(time.Duration(random.IntN(20)) * time.Second)
					group.Lock()
					crashed := len(members) > 1 && (len(members) == 5 || random.IntN(2) == 0)
					if crashed {
						gone := random.IntN(len(members))
						members[gone].alive = false
						members = slices.Delete(members, gone, gone+1)
					} else {
						join()
					}
					group.Unlock()
					if crashed {
						pass(sessionTime) // before the others hear of it
					}
					rebalance()
				}
				pass(20 * time.Second)
				mu.Lock()
				before := len(requests)
				mu.Unlock()
				pass(10 * time.Second)
				stop()
				asking.Wait()
				if quiet := len(requests) - before; quiet < 0.9*10*perSecond {
					t.Errorf("in quiet times only %d requests in 10 s", quiet)
				}
				for _, window := range []time.Duration{time.Second, 2 * time.Second, 10 * time.Second} {
					allowed := int(window.Seconds()*perSecond) + burst
					for first, last := 0, 0; last < len(requests); last++ {
						for requests[last].Sub(requests[first]) >= window {
							first++
						}
						if n := last - first + 1; n > allowed {
							t.Fatalf("%d requests in %v, %d are allowed", n, window, allowed)
						}
					}
				}
			})
		})
	}
}

func TestPartitionsStayWhereTheyAre(t *testing.T) {
	var topic []kafka.Partition
	for i := range 12 {
		topic = append(topic, kafka.Partition{Topic: "jobs", ID: i})
	}
	assign := func(owned map[string][]int) map[string][]int {
		var members []kafka.GroupMember
		for id, partitions := range owned {
			data, err := sticky{owned: func() []int { return partitions }}.UserData()
			if err != nil {
				t.Fatal(err)
			}
			members = append(members, kafka.GroupMember{ID: id, Topics: []string{"jobs"}, UserData: data})
		}
		given := make(map[string][]int)
		for id, topics := range (sticky{led: func(int) {}}).AssignGroups(members, topic) {
			given[id] = topics["jobs"]
		}
		return given
	}
	for _, c := range []struct {
		name  string
		owned map[string][]int
		moved int
	}{
		{"the first one gets all", map[string][]int{"a": nil}, 12},
		{"a newcomer gets half", map[string][]int{"a": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, "b": nil}, 6},
		{"nothing moves without need", map[string][]int{"a": {0, 1, 2, 3, 4, 5}, "b": {6, 7, 8, 9, 10, 11}}, 0},
		{"who leaves is shared out", map[string][]int{"a": {0, 1, 2, 3}, "b": {4, 5, 6, 7}}, 4},
		{"what two claim goes to one", map[string][]int{"a": {0, 1, 2, 3, 4, 5}, "b": {0, 1, 2, 3, 4, 5}}, 6},
		{"there are more instances than partitions", map[string][]int{"a": {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, "b": nil, "c": nil, "d": nil, "e": nil, "f": nil,
			"g": nil, "h": nil, "i": nil, "j": nil, "k": nil, "l": nil, "m": nil}, 11},
	} {
		t.Run(c.name, func(t *testing.T) {
			given := assign(c.owned)
			seen := make(map[int]bool)
			moved, least, most := 0, 12, 0
			for id, partitions := range given {
				least, most = min(least, len(partitions)), max(most, len(partitions))
				for _, p := range partitions {
					if seen[p] {
						t.Errorf("partition %d is given twice", p)
					}
					seen[p] = true
					if !slices.Contains(c.owned[id], p) {
						moved++
					}
				}
			}
			if len(seen) != 12 || moved != c.moved || most-least > 1 {
				t.Errorf("%v: %d partitions given, %d moved, %d to %d each", given, len(seen), moved, least, most)
			}
		})
	}
}

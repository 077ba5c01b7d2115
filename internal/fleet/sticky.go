package fleet

import (
	"cmp"
	"encoding/json"
	"slices"

	"github.com/segmentio/kafka-go"
)

// sticky is a [kafka.GroupBalancer] that leaves partitions where they are as far
// as everyone is to have equally many: a job that moves is fenced and goes on
// from its last commit.
type sticky struct {
	// owned returns the partitions that this member has now.
	owned func() []int
	// led is told how many members there are where this one leads the group.
	led func(members int)
}

// ProtocolName is part of [kafka.GroupBalancer].
func (sticky) ProtocolName() string { return "rebound-sticky" }

// UserData is part of [kafka.GroupBalancer]: the partitions that the member has,
// as a JSON array.
func (s sticky) UserData() ([]byte, error) { return json.Marshal(s.owned()) }

// AssignGroups is part of [kafka.GroupBalancer].
func (s sticky) AssignGroups(members []kafka.GroupMember, partitions []kafka.Partition) kafka.GroupMemberAssignments {
	s.led(len(members))
	type share struct {
		id      string
		claimed []int
		given   []int
	}
	topic := members[0].Topics[0]
	var free []int
	for _, p := range partitions {
		if p.Topic == topic {
			free = append(free, p.ID)
		}
	}
	slices.Sort(free)
	total := len(free)
	shares := make([]share, len(members))
	for i, m := range members {
		shares[i].id = m.ID
		// What is no claim is none.
		_ = json.Unmarshal(m.UserData, &shares[i].claimed)
	}
	// Who has most is first to be given one more where they cannot be equal.
	slices.SortFunc(shares, func(a, b share) int {
		return cmp.Or(cmp.Compare(len(b.claimed), len(a.claimed)), cmp.Compare(a.id, b.id))
	})
	fair := func(i int) int {
		n := total / len(shares)
		if i < total%len(shares) {
			n++
		}
		return n
	}
	for i := range shares {
		for _, claim := range shares[i].claimed {
			if at, found := slices.BinarySearch(free, claim); found && len(shares[i].given) < fair(i) {
				shares[i].given = append(shares[i].given, claim)
				free = slices.Delete(free, at, at+1)
			}
		}
	}
	assignments := make(kafka.GroupMemberAssignments)
	for i := range shares {
		n := min(fair(i)-len(shares[i].given), len(free))
		shares[i].given = append(shares[i].given, free[:n]...)
		free = free[n:]
		assignments[shares[i].id] = map[string][]int{topic: shares[i].given}
	}
	return assignments
}

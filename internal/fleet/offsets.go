package fleet

import (
	"slices"
	"sync"
)

// offsets works out how far a partition of the jobs topic is done: up to the
// first order that is not carried out yet. It is safe for concurrent use.
type offsets struct {
	mu   sync.Mutex
	open []int64 // orders that are not carried out, in order
	// settled: no more orders are to come below it.
	settled int64
}

// take notes an order that was delivered.
func (o *offsets) take(offset int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if i, found := slices.BinarySearch(o.open, offset); !found {
		o.open = slices.Insert(o.open, i, offset)
	}
}

// end notes that an order is carried out.
func (o *offsets) end(offset int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if i, found := slices.BinarySearch(o.open, offset); found {
		o.open = slices.Delete(o.open, i, i+1)
	}
}

// settle notes that everything below was delivered.
func (o *offsets) settle(below int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settled = below
}

// position returns the offset to begin with after a restart.
func (o *offsets) position() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.open) > 0 {
		return min(o.open[0], o.settled)
	}
	return o.settled
}

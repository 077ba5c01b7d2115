package source

import (
	"context"

	"golang.org/x/sync/semaphore"
)

const (
	// bodiesBytes is how many bytes of pages all jobs together hold, in use,
	// waiting and on their way. A page that is larger has it to itself.
	bodiesBytes = 24 << 20
	// aheadBytes is how large bodies may be that a job holds several of. Of
	// larger ones it holds one at a time, which costs the time of a fetch a
	// page.
	aheadBytes = 8 << 20
	// leastBody is what a page is taken to have before one of the job was seen.
	leastBody = 64 << 10
)

// mayFetchAhead tells whether the page after one of the size may be fetched while
// that one is in use.
func mayFetchAhead(size int) bool { return size <= aheadBytes }

// body is a page as received, and the share of the budget that it was given.
type body struct {
	bytes  []byte
	budget int64
}

// bodies are the buffers that the pages of all jobs are read into. It is safe for
// concurrent use.
type bodies struct {
	budget *semaphore.Weighted
	free   chan []byte
}

func newBodies() *bodies {
	return &bodies{semaphore.NewWeighted(bodiesBytes), make(chan []byte, 8)}
}

// take waits until there is room for a page of the size, and returns a buffer.
//
// Nobody who holds a body waits for another one before it puts it back, but for
// the bodies that are fetched ahead; those wait for their turn only.
func (b *bodies) take(ctx context.Context, size int) (body, error) {
	budget := int64(min(max(size, leastBody), bodiesBytes))
	if err := b.budget.Acquire(ctx, budget); err != nil {
		return body{}, err
	}
	select {
	case buffer := <-b.free:
		return body{buffer, budget}, nil
	default:
		return body{nil, budget}, nil
	}
}

// put takes a body back. The zero body is nothing.
func (b *bodies) put(used body) {
	if used.budget == 0 {
		return
	}
	b.budget.Release(used.budget)
	if cap(used.bytes) == 0 || cap(used.bytes) > 2*aheadBytes {
		return
	}
	select {
	case b.free <- used.bytes:
	default:
	}
}

package source

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Bucket is the token bucket that everything which asks the API shares. It
// fills at a steady rate up to its burst; a request takes one token. It can be
// held: until the hold is over no request leaves, whoever wants to send it.
//
// A Bucket is safe for concurrent use.
type Bucket struct {
	limiter *rate.Limiter

	mu     sync.Mutex
	held   time.Time
	waited time.Duration
}

// NewBucket returns a full bucket that takes perSecond requests a second and
// bursts of up to burst requests.
func NewBucket(perSecond float64, burst int) *Bucket {
	return &Bucket{limiter: rate.NewLimiter(rate.Limit(perSecond), burst)}
}

// Wait blocks until a request may be sent, or returns the context's error.
func (b *Bucket) Wait(ctx context.Context) error {
	began := time.Now()
	defer func() {
		b.mu.Lock()
		b.waited += time.Since(began)
		b.mu.Unlock()
	}()
	for {
		if err := sleep(ctx, time.Until(b.heldUntil())); err != nil {
			return err
		}
		reservation := b.limiter.Reserve()
		if err := sleep(ctx, reservation.Delay()); err != nil {
			reservation.Cancel()
			return err
		}
		// A hold that began meanwhile is for this request too. Its token is
		// forfeited: all that waited would leave at once otherwise.
		if !time.Now().Before(b.heldUntil()) {
			return nil
		}
	}
}

// Hold stops all requests for d from now on. A hold never shortens another.
func (b *Bucket) Hold(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if until := time.Now().Add(d); until.After(b.held) {
		b.held = until
	}
}

// Waited returns how long requests have waited for the bucket, all together.
func (b *Bucket) Waited() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waited
}

func (b *Bucket) heldUntil() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

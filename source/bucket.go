package source

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"rebound/internal/clock"
)

// Bucket is the token bucket that everything which asks the API shares. It
// fills at a steady rate up to its burst; a request takes one token. It can be
// held: until the hold is over no request leaves, whoever wants to send it.
//
// A Bucket is safe for concurrent use.
type Bucket struct {
	mu      sync.Mutex
	limiter *rate.Limiter
	waiting int           // requests that have a token of limiter's to come
	until   time.Time     // when the share ends; zero for never
	held    time.Time     // when the hold ends
	changed chan struct{} // closed when those who wait are to look again
	waited  time.Duration
}

// NewBucket returns a full bucket that takes perSecond requests a second and
// bursts of up to burst requests. One of nothing at all waits for its share.
func NewBucket(perSecond float64, burst int) *Bucket {
	return &Bucket{limiter: rate.NewLimiter(rate.Limit(perSecond), burst), changed: make(chan struct{})}
}

// Share changes how many requests the bucket takes, until a moment from which on
// nothing leaves unless Share is called again; zero is never. It makes no tokens:
// a bucket that is given more fills up at its new rate, so that the sum of
// several buckets with a share each of one limit stays within it while shares
// move between them.
func (b *Bucket) Share(perSecond float64, burst int, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	same := b.limiter.Limit() == rate.Limit(perSecond) && b.limiter.Burst() == burst
	ended := b.ended()
	b.until = until
	if same && !ended {
		return
	}
	// Whoever waits does so by the old share: those tokens come back, and all
	// look again. A limiter of its own for each share, since reservations that
	// are cancelled after the rate was raised give back more than they took.
	now := time.Now()
	tokens := int(max(b.limiter.TokensAt(now)+float64(b.waiting), 0))
	b.limiter, b.waiting = rate.NewLimiter(rate.Limit(perSecond), burst), 0
	b.limiter.AllowN(now, max(burst-tokens, 0))
	close(b.changed)
	b.changed = make(chan struct{})
}

// ended tells whether the share has ended.
func (b *Bucket) ended() bool { return !b.until.IsZero() && time.Now().After(b.until) }

// Wait blocks until a request may be sent, or returns the context's error.
func (b *Bucket) Wait(ctx context.Context) error {
	began := time.Now()
	defer func() {
		b.mu.Lock()
		b.waited += time.Since(began)
		b.mu.Unlock()
	}()
	for {
		if err := clock.Sleep(ctx, time.Until(b.heldUntil())); err != nil {
			return err
		}
		turn := b.reserve()
		slept := sleepUnless(ctx, turn.delay, turn.changed)
		if ctx.Err() != nil {
			b.giveBack(turn)
			return ctx.Err()
		}
		if slept && b.mayLeave(turn) {
			return nil
		}
	}
}

// turn is a token that is there after a delay, unless the share changes before.
type turn struct {
	limiter     *rate.Limiter
	reservation *rate.Reservation
	delay       time.Duration
	changed     <-chan struct{}
}

func (b *Bucket) reserve() turn {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended() {
		return turn{delay: rate.InfDuration, changed: b.changed}
	}
	reservation := b.limiter.Reserve()
	b.waiting++
	return turn{b.limiter, reservation, reservation.Delay(), b.changed}
}

func (b *Bucket) giveBack(t turn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t.limiter == b.limiter {
		b.waiting--
		t.reservation.Cancel()
	}
}

// mayLeave tells whether a request may leave whose turn it is. A hold that began
// meanwhile is for this request too. Its token is forfeited: all that waited would
// leave at once otherwise.
func (b *Bucket) mayLeave(t turn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t.limiter != b.limiter {
		return false // the token has gone back
	}
	b.waiting--
	return !time.Now().Before(b.held) && !b.ended()
}

// Hold stops all requests for d from now on. A hold never shortens another.
func (b *Bucket) Hold(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if until := time.Now().Add(d); until.After(b.held) {
		b.held = until
	}
}

// Limit returns how many requests a second the bucket takes now.
func (b *Bucket) Limit() float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended() {
		return 0
	}
	return float64(b.limiter.Limit())
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

// sleepUnless reports whether it has slept for d, undisturbed.
func sleepUnless(ctx context.Context, d time.Duration, disturbed <-chan struct{}) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-disturbed:
		return false
	case <-ctx.Done():
		return false
	}
}

package transaction

import (
	"context"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Retry calls do until it succeeds, fails in a way that no other try mends, or
// has been failing for longer than timeout; it then returns the last error.
// failed is told of each failure that is tried again, for how long it has been
// failing, and when the next try comes.
//
// Pauses grow from 0.1 s to 5 s; while the markers of an earlier transaction are
// being written, from 5 ms to 0.2 s.
func Retry(ctx context.Context, timeout time.Duration, failed func(err error, failing, in time.Duration), do func(context.Context) error) error {
	slow := backoff.ExponentialBackOff{
		InitialInterval: 100 * time.Millisecond, MaxInterval: 5 * time.Second, Multiplier: 2, RandomizationFactor: 0.4}
	quick := backoff.ExponentialBackOff{
		InitialInterval: 5 * time.Millisecond, MaxInterval: 200 * time.Millisecond, Multiplier: 1.5, RandomizationFactor: 0.2}
	began := time.Now()
	for {
		err := do(ctx)
		verdict, _ := judge(err)
		if err == nil || verdict == accepted {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w (at last: %v)", ctx.Err(), describe(err))
		}
		var pause time.Duration
		switch verdict {
		case soon:
			pause = quick.NextBackOff()
		case again:
			pause = slow.NextBackOff()
		default:
			return err
		}
		failing := time.Since(began)
		if failing+pause > timeout {
			return fmt.Errorf("still failing after %v: %w", failing.Round(time.Millisecond), describe(err))
		}
		failed(describe(err), failing, pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("%w (at last: %v)", ctx.Err(), describe(err))
		}
	}
}

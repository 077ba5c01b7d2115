package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rebound/pipeline"
	"rebound/sink"
	"rebound/source"
)

// stage is a scheduler whose jobs take the time that they are said to.
type stage struct {
	*Scheduler
	t    *testing.T
	stop context.CancelFunc

	mu        sync.Mutex
	pages     map[string]int64         // of a job; a page takes 10 ms
	published map[string]int64         // pages, by job
	failures  map[string]func() error  // what a run ends with instead
	ended     map[string]time.Duration // since the start
	outcomes  map[string]error
	runs      map[string]int
	most      int // jobs at once
	now       int
	began     time.Time
}

const pageTime = 10 * time.Millisecond

func newStage(t *testing.T, concurrency int) *stage {
	s := &stage{
		t: t, pages: make(map[string]int64), published: make(map[string]int64), failures: make(map[string]func() error),
		ended: make(map[string]time.Duration), outcomes: make(map[string]error), runs: make(map[string]int), began: time.Now(),
	}
	s.Scheduler = &Scheduler{
		Concurrency: concurrency, JobTimeout: 24 * time.Hour, Run: s.run, Log: slog.New(slog.DiscardHandler),
		Processing: func(context.Context, pipeline.JobKey) (bool, error) { return true, nil },
		Ended: func(e Ended) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.ended[e.Order.JobID] = time.Since(s.began)
			s.outcomes[e.Order.JobID] = e.Err
		},
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(t.Context())
	s.Start(ctx)
	return s
}

func (s *stage) end() {
	s.stop()
	s.Wait()
}

// order gives the scheduler an order for a job of so many pages.
func (s *stage) order(offset int64, jobID string, pages int64) {
	s.mu.Lock()
	s.pages[jobID] = pages
	s.mu.Unlock()
	s.Add(s.t.Context(), sink.Delivery{Order: pipeline.Order{JobID: jobID, Place: &pipeline.Place{Offset: offset, Time: time.Now()}}})
}

func (s *stage) run(ctx context.Context, d sink.Delivery) (pipeline.Outcome, error) {
	id := d.JobID
	s.mu.Lock()
	s.runs[id]++
	s.now++
	s.most = max(s.most, s.now)
	failure := s.failures[id]
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.now--
		s.mu.Unlock()
	}()
	if failure != nil {
		if err := failure(); err != nil {
			return pipeline.Outcome{}, err
		}
	}
	for {
		s.mu.Lock()
		done := s.published[id] >= s.pages[id]
		progress := pipeline.Progress{JobID: id, State: pipeline.Running, Pages: s.published[id], Published: s.published[id]}
		s.mu.Unlock()
		if done {
			progress.State = pipeline.Done
			return pipeline.Outcome{Progress: progress}, nil
		}
		select {
		case <-ctx.Done():
			return pipeline.Outcome{Progress: progress}, ctx.Err()
		case <-time.After(pageTime):
		}
		s.mu.Lock()
		s.published[id]++
		progress.Pages++
		s.mu.Unlock()
		s.Report(progress)
	}
}

// pass lets time go by, and everything come to rest that is due then.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestASmallJobDoesNotWaitForABigOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 2)
		defer s.end()
		for i := range 4 {
			s.order(int64(i), fmt.Sprintf("big%d", i), 100_000)
		}
		pass(time.Minute)
		s.order(10, "small", 5)
		pass(3 * time.Second)
		if took := s.ended["small"] - time.Minute; took <= 0 || took > 2*time.Second {
			t.Errorf("the small job took %v", took)
		}
	})
}

func TestBigJobsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 2)
		defer s.end()
		for i := range 6 {
			s.order(int64(i), fmt.Sprint(i), 1_000_000)
		}
		pass(10 * time.Minute)
		s.mu.Lock()
		defer s.mu.Unlock()
		var sum int64
		for _, pages := range s.published {
			sum += pages
		}
		for id, pages := range s.published {
			if share := float64(pages) / float64(sum) * 6; share < 0.9 || share > 1.1 {
				t.Errorf("job %s had %.2f of its share", id, share)
			}
		}
		if s.most > 2 {
			t.Errorf("%d jobs ran at once", s.most)
		}
	})
}

func TestAJobThatIsProcessedIsParkedAndHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 1)
		defer s.end()
		processed := time.Now().Add(5 * time.Hour)
		polls := 0
		s.failures["slow"] = func() error {
			if time.Now().Before(processed) {
				return fmt.Errorf("job slow: %w", source.ErrProcessing)
			}
			return nil
		}
		s.Processing = func(context.Context, pipeline.JobKey) (bool, error) {
			polls++
			return time.Now().Before(processed), nil
		}
		s.order(0, "slow", 10)
		for i := range 20 {
			s.order(int64(i+1), fmt.Sprintf("quick%d", i), 3)
		}
		pass(10 * time.Second)
		if len(s.ended) != 20 {
			t.Errorf("%d of 20 other jobs have ended", len(s.ended))
		}
		tasks := s.Tasks(10)
		if len(tasks) != 1 || tasks[0].State != Parked || tasks[0].Why == "" {
			t.Errorf("tasks: %v", tasks)
		}
		pass(5*time.Hour + 2*time.Minute)
		if took := s.ended["slow"]; took < 5*time.Hour || took > 5*time.Hour+2*time.Minute {
			t.Errorf("the parked job ended after %v", took)
		}
		if polls > 400 || s.runs["slow"] != 2 {
			t.Errorf("it was polled %d times and run %d times", polls, s.runs["slow"])
		}
	})
}

func TestAParkedJobIsGivenUpAfterTheJobTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 1)
		defer s.end()
		lastTries := 0
		run := s.Run
		s.Run = func(ctx context.Context, d sink.Delivery) (pipeline.Outcome, error) {
			if d.Last {
				lastTries++
			}
			return run(ctx, d)
		}
		s.failures["stuck"] = func() error { return source.ErrProcessing }
		// It was ordered twenty hours before this instance was started.
		s.Add(t.Context(), sink.Delivery{Order: pipeline.Order{JobID: "stuck", Place: &pipeline.Place{Time: time.Now().Add(-20 * time.Hour)}}})
		pass(4*time.Hour + 2*time.Minute)
		if took := s.ended["stuck"]; took < 4*time.Hour || !errors.Is(s.outcomes["stuck"], source.ErrProcessing) || lastTries != 1 {
			t.Errorf("ended after %v with %v, last tries: %d", took, s.outcomes["stuck"], lastTries)
		}
	})
}

func TestHowARunEndsDecidesWhatBecomesOfTheOrder(t *testing.T) {
	refused := &source.Error{JobID: "x", Status: 404}
	for _, c := range []struct {
		name  string
		err   error
		state State // empty: it has ended
	}{
		{"an unknown job is over", refused, ""},
		{"a key that is refused may be mended", &source.Error{JobID: "x", Status: 401}, Parked},
		{"an outage passes", errors.New("connection refused"), Parked},
		{"an incomplete job is over", &pipeline.IncompleteError{}, ""},
		{"a job that another process has taken is left to it", fmt.Errorf("%w: it took over", pipeline.ErrFenced), Parked},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t, 1)
				defer s.end()
				s.failures["x"] = func() error { return c.err }
				s.order(0, "x", 1)
				synctest.Wait()
				_, ended := s.ended["x"]
				tasks := s.Tasks(10)
				if ended != (c.state == "") || len(tasks) > 1 || len(tasks) == 1 && tasks[0].State != c.state {
					t.Errorf("ended: %v, tasks: %v", ended, tasks)
				}
			})
		})
	}
}

func TestAJobIsTakenBackWhereTheOtherProcessHasStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 1)
		defer s.end()
		theirs := true
		s.failures["x"] = func() error {
			if theirs {
				return pipeline.ErrFenced
			}
			return nil
		}
		var last time.Time
		s.Scheduler.Progress = func(context.Context, pipeline.JobKey) (pipeline.Progress, error) {
			if time.Since(s.began) < time.Minute {
				last = time.Now() // it goes on
			} else {
				theirs = false
			}
			return pipeline.Progress{JobID: "x", State: pipeline.Running, UpdatedAt: last}, nil
		}
		s.order(0, "x", 1)
		pass(5 * time.Minute)
		if took := s.ended["x"]; took < time.Minute || took > 2*time.Minute {
			t.Errorf("taken back after %v", took)
		}
		if s.runs["x"] != 2 {
			t.Errorf("%d runs: each one fences the other process", s.runs["x"])
		}
	})
}

func TestWhatAnotherInstanceHasIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 1)
		defer s.end()
		s.order(0, "runs", 1000)
		s.order(1, "waits", 1000)
		pass(time.Second / 2)
		s.Drop(0)
		synctest.Wait()
		pass(time.Minute)
		if tasks := s.Tasks(10); len(tasks) > 0 || len(s.ended) > 0 || s.published["runs"] > 100 {
			t.Errorf("tasks %v, ended %v, pages %v", tasks, s.ended, s.published)
		}
	})
}

func TestNothingStartsWhileTheGroupIsSortedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 2)
		defer s.end()
		s.order(0, "running", 100)
		synctest.Wait()
		s.Hold(true)
		s.order(1, "later", 1)
		pass(3 * time.Second)
		if s.ended["running"] == 0 || s.runs["later"] > 0 {
			t.Errorf("ended %v, runs %v", s.ended, s.runs)
		}
		s.Hold(false)
		pass(time.Second)
		if s.ended["later"] == 0 {
			t.Error("it did not go on")
		}
	})
}

func TestOneJobNeverRunsTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 8)
		defer s.end()
		for i := range 20 {
			s.order(int64(i), "same", 50)
		}
		pass(time.Minute)
		if s.most != 1 || s.runs["same"] != 20 {
			t.Errorf("%d at once, %d runs", s.most, s.runs["same"])
		}
	})
}

func TestTheOffsetMovesPastWhatIsCarriedOut(t *testing.T) {
	var o offsets
	o.settle(10)
	for i := int64(10); i < 15; i++ {
		o.take(i)
	}
	o.settle(15)
	var got []int64
	for _, end := range []int64{12, 10, 14, 11, 13} {
		o.end(end)
		got = append(got, o.position())
	}
	if want := []int64{10, 11, 11, 13, 15}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// A transaction is open that began at 16; 18 is not part of it.
	o.take(18)
	o.settle(16)
	o.end(18)
	if at := o.position(); at != 16 {
		t.Errorf("at %d, past an order that may still be committed", at)
	}
}

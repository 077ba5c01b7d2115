package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"rebound/internal/kafkaproxy"
	"rebound/internal/simulator"
)

// watched is a world whose brokers are behind a proxy with a hook: embedded
// ones, or those that KAFKA_PROXIED names as proxy=broker pairs, which is how
// .ci/kafka starts them.
type watched struct {
	*world
	mu   sync.Mutex
	hook kafkaproxy.Hook
}

func (w *watched) call(e kafkaproxy.Event) error {
	w.mu.Lock()
	hook := w.hook
	w.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(e)
}

func (w *watched) set(hook kafkaproxy.Hook) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hook = hook
}

func newWatched(t *testing.T, options simulator.Options) *watched {
	t.Helper()
	w := new(watched)
	pairs := os.Getenv("KAFKA_PROXIED")
	if pairs == "" {
		w.world = newWorld(t, options, kfake.ListenFn(func(network, address string) (net.Listener, error) {
			front, err := net.Listen(network, address)
			if err != nil {
				return nil, err
			}
			pipe := kafkaproxy.NewPipe(front.Addr())
			proxy := kafkaproxy.Start(front, pipe.Dial, w.call)
			t.Cleanup(proxy.Close)
			return pipe, nil
		}))
		return w
	}
	w.world = newWorld(t, options)
	var brokers []string
	for pair := range strings.SplitSeq(pairs, ",") {
		front, back, _ := strings.Cut(pair, "=")
		listener, err := net.Listen("tcp", front)
		if err != nil {
			t.Fatal(err)
		}
		proxy := kafkaproxy.Start(listener, func() (net.Conn, error) { return net.Dial("tcp", back) }, w.call)
		t.Cleanup(proxy.Close)
		brokers = append(brokers, front)
	}
	w.env["KAFKA_BROKERS"] = strings.Join(brokers, ",")
	return w
}

// The requests that belong to no step of publishing: finding one's way.
var preliminary = map[int16]bool{
	3:  true, // Metadata
	10: true, // FindCoordinator
	18: true, // ApiVersions
	32: true, // DescribeConfigs
}

// start starts rebound.
func (w *watched) start(arguments ...string) (*exec.Cmd, *bytes.Buffer) {
	w.t.Helper()
	command := w.command(w.t.Context(), arguments)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	if err := command.Start(); err != nil {
		w.t.Fatal(err)
	}
	return command, &stderr
}

// TestTheProcessDiesAtEachStep kills rebound at every moment of every request
// that publishing a job takes: before the broker gets it, before its answer is
// read, and after. The list of steps is what a run is seen to do, so a step that
// is new is in it.
func TestTheProcessDiesAtEachStep(t *testing.T) {
	w := newWatched(t, simulator.Options{})
	w.env["COMMIT_INTERVAL"] = "0s" // each page is a transaction of its own
	const failures, pageSize = 90, 30
	w.conjure("first=", failures, pageSize)
	w.run([]string{"run", "first="}).must(t, 0) // makes the topics

	// A run that is only watched: how many events does it have?
	var mu sync.Mutex
	var events []kafkaproxy.Event
	w.set(func(e kafkaproxy.Event) error {
		if !preliminary[e.API] {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, e)
		}
		return nil
	})
	w.conjure("watched=", failures, pageSize)
	w.run([]string{"run", "watched="}).must(t, 0)
	w.set(nil)
	mu.Lock()
	steps := len(events)
	seen := make(map[int16]bool)
	for _, e := range events {
		seen[e.API] = true
	}
	mu.Unlock()
	for _, api := range []int16{0, 2, 22, 24, 26} { // Produce, ListOffsets, InitProducerId, AddPartitionsToTxn, EndTxn
		if !seen[api] {
			t.Fatalf("the watched run made no request %d; it made %v", api, events)
		}
	}
	stride := 1
	if testing.Short() {
		stride = 7
	}
	killed := 0
	for step := 0; step < steps; step += stride {
		id := fmt.Sprintf("step-%d=", step)
		w.conjure(id, failures, pageSize)
		var at kafkaproxy.Event
		command, stderr := w.start("run", id)
		count := 0
		w.set(func(e kafkaproxy.Event) error {
			if preliminary[e.API] {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if count++; count-1 == step {
				at = e
				command.Process.Kill()
				command.Process.Wait()
				return kafkaproxy.ErrCut
			}
			return nil
		})
		command.Wait()
		w.set(nil)
		mu.Lock()
		if count > step {
			killed++
		}
		mu.Unlock()
		if r := w.run([]string{"run", id}); r.status != 0 {
			t.Fatalf("killed at request %d %v: the next run fails: %s\nthe killed one said %s", at.API, at.Moment, r.stderr, stderr)
		}
	}
	for step := 0; step < steps; step += stride {
		w.mustBePublished(fmt.Sprintf("step-%d=", step), failures, 1)
	}
	t.Logf("%d moments in a run of three transactions; killed at %d, each job is there once", steps, killed)
}

// TestKilledAnywhere kills rebound at random moments while acknowledgements are
// lost and connections cut. See .ci/chaos for the long form.
func TestKilledAnywhere(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	w := newWatched(t, simulator.Options{Latency: 3 * time.Millisecond})
	var mu sync.Mutex
	lost := 0
	w.set(func(kafkaproxy.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if random.Float64() < 0.004 {
			lost++
			return kafkaproxy.ErrCut
		}
		return nil
	})
	var ids []string
	for i := range 5 {
		ids = append(ids, fmt.Sprintf("any-%d=", i))
		w.conjure(ids[i], 3000, 50)
	}
	kills := 0
	for want := 20; kills < want; {
		command, _ := w.start(append([]string{"run"}, ids...)...)
		done := make(chan error, 1)
		go func() { done <- command.Wait() }()
		mu.Lock()
		pause := time.Duration(20+random.IntN(150)) * time.Millisecond
		mu.Unlock()
		select {
		case <-done: // the jobs are done before we could kill it often enough
			want = kills
		case <-time.After(pause):
			command.Process.Kill()
			<-done
			kills++
		}
	}
	w.run(append([]string{"run"}, ids...)).must(t, 0)
	w.set(nil)
	for _, id := range ids {
		w.mustBePublished(id, 3000, 1)
	}
	t.Logf("seed %d: killed %d times, %d connections cut, every failure is there once", seed, kills, lost)
}

func TestTheOlderOfTwoInstancesIsFenced(t *testing.T) {
	w := newWatched(t, simulator.Options{Latency: 30 * time.Millisecond})
	w.conjure("both=", 3000, 50)
	older, olderSaid := w.start("run", "both=")
	for len(w.api.Arrivals()) < 10 {
		time.Sleep(time.Millisecond) // until it is under way
	}
	w.run([]string{"run", "both="}).must(t, 0)
	older.Wait()
	if status := older.ProcessState.ExitCode(); status != 1 || !strings.Contains(olderSaid.String(), "another rebound process works on this job") {
		t.Errorf("the older instance ended with %d and said\n%s", status, olderSaid)
	}
	w.mustBePublished("both=", 3000, 1)
	if p := w.progress("both="); p["state"] != "done" {
		t.Errorf("progress is %v", p)
	}
}

func TestAPageTokenThatExpiredMeanwhile(t *testing.T) {
	w := newWatched(t, simulator.Options{Latency: 20 * time.Millisecond})
	w.conjure("expired=", 2000, 50)
	command, _ := w.start("run", "expired=")
	for len(w.api.Arrivals()) < 20 {
		time.Sleep(time.Millisecond) // until it is under way
	}
	command.Process.Kill()
	command.Wait()
	w.api.ExpireTokens()
	r := w.run([]string{"run", "expired="}).must(t, 0)
	if !strings.Contains(r.stderr, "no longer takes the page token") {
		t.Errorf("it does not say that it reads from page one:\n%s", r.stderr)
	}
	w.mustBePublished("expired=", 2000, 1)
	w.run([]string{"verify", "expired="}).must(t, 0)
}

func TestAJobThatGrowsMeanwhile(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	job := simulator.Conjured{ID: "short=", Failures: 100, PageSize: 10, Plain: true, Claimed: 120}
	// The API says more than its pages hold: incomplete, with both numbers.
	w.api.Conjure(job)
	r := w.run([]string{"run", "short="}).must(t, 1)
	if !strings.Contains(r.stderr, "100 failures handled (100 published, 0 dead-lettered), but FullStory counts 120") {
		t.Errorf("it says\n%s", r.stderr)
	}
	if p := w.progress("short="); p["state"] != "incomplete" {
		t.Errorf("progress is %v", p)
	}
	// The rest comes later: the next run finds it, and repeats nothing.
	job.Failures = 120
	w.api.Conjure(job)
	w.run([]string{"run", "short="}).must(t, 0)
	w.mustBePublished("short=", 120, 1)
	if p := w.progress("short="); p["state"] != "done" {
		t.Errorf("progress is %v", p)
	}
}

func TestAJobThatShrinksMeanwhile(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	job := simulator.Conjured{ID: "shrinks=", Failures: 100, PageSize: 10, Plain: true, Claimed: 120}
	w.api.Conjure(job)
	w.run([]string{"run", "shrinks="}).must(t, 1)
	job.Failures, job.Claimed = 60, 60
	w.api.Conjure(job)
	r := w.run([]string{"run", "shrinks="}).must(t, 1)
	if !strings.Contains(r.stderr, "100 failures handled (100 published, 0 dead-lettered), but FullStory counts 60") {
		t.Errorf("it says\n%s", r.stderr)
	}
}

// A transaction that the brokers gave up, for whatever reason, is begun again
// from what was committed.
func TestALostTransactionIsBegunAgain(t *testing.T) {
	w := newWorld(t, simulator.Options{Latency: 5 * time.Millisecond}, kfake.NumBrokers(1))
	w.conjure("lost=", 1000, 50)
	var mu sync.Mutex
	commits, lost := 0, 0
	w.cluster.ControlKey(26, func(request kmsg.Request) (kmsg.Response, error, bool) {
		mu.Lock()
		defer mu.Unlock()
		w.cluster.KeepControl()
		if request.(*kmsg.EndTxnRequest).Commit {
			if commits++; commits%3 == 2 {
				lost++
				response := request.ResponseKind().(*kmsg.EndTxnResponse)
				response.ErrorCode = 48 // INVALID_TXN_STATE
				return response, nil, true
			}
		}
		return nil, nil, false
	})
	r := w.run([]string{"run", "lost="}).must(t, 0)
	if !strings.Contains(r.stderr, "nothing since the last commit counts; going on from there") {
		t.Errorf("it does not say that it begins again:\n%s", r.stderr)
	}
	w.mustBePublished("lost=", 1000, 1)
	mu.Lock()
	defer mu.Unlock()
	if lost == 0 {
		t.Error("no transaction was lost")
	}
	t.Logf("%d of %d commits were refused", lost, commits)
}

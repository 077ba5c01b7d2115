package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rebound/internal/simulator"
)

// TestFleetChaos is the proof for serve: instances of a group are killed, stopped,
// put to sleep and added at random while they publish, and a broker is restarted.
// Then every job is done, once; kcat finds every failure once; and the API was
// never asked more often than the limit allows, and nearly as often in quiet
// times.
//
// REBOUND_FLEET_CHAOS says how much: short, or long (.ci/chaos fleet). Without
// brokers that .ci/kafka has started it runs on an embedded cluster and restarts
// none.
func TestFleetChaos(t *testing.T) {
	size, ok := map[string]fleetChaos{
		"short": {jobs: 30, failures: 3000, events: 5, quiet: 1},
		"long":  {jobs: 200, failures: 1500, events: 30, quiet: 3},
	}[os.Getenv("REBOUND_FLEET_CHAOS")]
	if !ok {
		t.Skip("takes minutes: set REBOUND_FLEET_CHAOS to short or long, or run .ci/chaos fleet")
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("REBOUND_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("seed %d", seed)
	faults, err := simulator.ParseFaults("500=0.003,cut=0.003,garbage=0.002")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, simulator.Options{Seed: seed, PageSize: 20, Faults: faults})
	w.env["COMMIT_INTERVAL"] = "200ms"
	w.env["FULLSTORY_RATE_LIMIT"], w.env["FULLSTORY_RATE_BURST"] = strconv.Itoa(fleetLimit), strconv.Itoa(fleetBurst)
	size.run(t, w, rand.New(rand.NewPCG(seed, 0)))
}

const (
	fleetLimit = 60
	fleetBurst = 12
)

// fleetChaos says how much of it there is.
type fleetChaos struct {
	jobs, failures int // failures of a job on average
	events         int
	quiet          int // times in between without events
}

func (c fleetChaos) run(t *testing.T, w *world, random *rand.Rand) {
	var ids []string
	failures := make(map[string]int64)
	for n := range c.jobs {
		id := fmt.Sprintf("fleet/%d+=", n)
		ids = append(ids, id)
		processing := time.Duration(0)
		if n%10 == 0 {
			processing = 20 * time.Second
		}
		failures[id] = int64(random.ExpFloat64() * float64(c.failures))
		w.api.Conjure(simulator.Conjured{ID: id, Failures: failures[id], Processing: processing})
	}
	var instances []*instance
	for range 3 {
		instances = append(instances, w.serve())
	}
	instances[0].submit(false, ids...)
	await(t, time.Minute, "work for all", func() bool { return allBusy(instances) })

	type stretch struct {
		from, to time.Time
		busy     bool // everyone had work all the time
	}
	var quiet []stretch
	counts := make(map[string]int)
	brokerDown := sync.WaitGroup{}
	for event := range c.events {
		at := random.IntN(len(instances))
		kind := []string{"kill", "stop", "sleep", "add"}[random.IntN(4)]
		if len(instances) >= 4 && kind == "add" {
			kind = "kill"
		}
		counts[kind]++
		t.Logf("%s %s", time.Now().Format("15:04:05.000"), kind)
		switch kind {
		case "kill":
			instances[at].kill()
			instances[at] = w.serve()
		case "stop":
			instances[at].terminate()
			if len(instances) > 3 {
				instances = append(instances[:at], instances[at+1:]...)
			} else {
				instances[at] = w.serve()
			}
		case "sleep":
			process := instances[at].command.Process
			process.Signal(syscall.SIGSTOP)
			time.Sleep(14 * time.Second) // its session ends
			process.Signal(syscall.SIGCONT)
		case "add":
			instances = append(instances, w.serve())
		}
		if event == c.events/2 && os.Getenv("KAFKA_PROXIED") != "" {
			brokerDown.Go(func() { counts["broker"] += outage(t, 2) })
		}
		if (event+1)%(c.events/c.quiet) == 0 {
			brokerDown.Wait()
			// It is quiet when all are missed that were killed and the shares are
			// handed over. Who is killed while it joins is missed a session later
			// than those before it.
			settling := time.Now()
			await(t, time.Minute, "the whole limit shared", func() bool { return shared(instances) == fleetLimit })
			t.Logf("quiet after %v", time.Since(settling).Round(time.Second))
			s := stretch{from: time.Now(), busy: true}
			for range 15 {
				time.Sleep(time.Second)
				s.busy = s.busy && allBusy(instances)
			}
			s.to = time.Now()
			quiet = append(quiet, s)
			continue
		}
		time.Sleep(time.Duration(500+random.IntN(3500)) * time.Millisecond)
	}
	began := time.Now()
	for _, id := range ids {
		await(t, 20*time.Minute, "job "+id+" done\n", func() bool { return instances[0].job(id).State == "done" })
	}
	t.Logf("%v; %d jobs done %v after the last event", counts, len(ids), time.Since(began).Round(time.Second))
	for _, i := range instances {
		i.terminate()
	}
	progress := w.allProgress()
	for _, id := range ids {
		if p := progress[id]; p["run"] != 1.0 || p["state"] != "done" {
			t.Errorf("%s: %v", id, p)
		}
	}
	if os.Getenv("KAFKA_PROXIED") != "" {
		w.compareWithKcat(ids)
	} else {
		for _, id := range ids {
			w.mustBePublished(id, failures[id], 1)
		}
	}
	mustKeepLimit(t, w.api.Arrivals())
	for _, s := range quiet {
		n := 0
		for _, a := range w.api.Arrivals() {
			if a.At.After(s.from) && a.At.Before(s.to) {
				n++
			}
		}
		used := float64(n) / s.to.Sub(s.from).Seconds() / fleetLimit
		t.Logf("%.0f %% of the limit used in quiet times; everyone had work: %v", 100*used, s.busy)
		if used < 0.9 && s.busy {
			t.Errorf("only %.0f %% of the limit was used in quiet times", 100*used)
		}
	}
}

// allBusy tells whether every instance has jobs that run.
func allBusy(instances []*instance) bool {
	for _, i := range instances {
		if _, metrics, _ := i.call("GET", "/metrics", ""); strings.Contains(metrics, `rebound_jobs_in_flight{state="running"} 0`) {
			return false
		}
	}
	return true
}

// shared is the sum of the instances' shares in the limit, a second.
func shared(instances []*instance) float64 {
	sum := 0.0
	for _, i := range instances {
		sum += i.metric("rebound_rate_limit_share")
	}
	return math.Round(sum)
}

// mustKeepLimit fails the test where more requests arrived in any time of a second
// or more than the limit allows.
func mustKeepLimit(t *testing.T, arrivals []simulator.Arrival) {
	t.Helper()
	var asked []time.Time
	for _, a := range arrivals {
		if strings.HasPrefix(a.Path, "/v2/") {
			asked = append(asked, a.At)
		}
	}
	slices.SortFunc(asked, time.Time.Compare) // they are in the order of the answers
	for _, window := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 30 * time.Second} {
		// A process that has no core for a moment sends late, and then at once.
		const jitter = 100 * time.Millisecond
		allowed := int((window+jitter).Seconds()*fleetLimit) + fleetBurst
		most, when := 0, time.Time{}
		for first, last := 0, 0; last < len(asked); last++ {
			for asked[last].Sub(asked[first]) >= window {
				first++
			}
			if n := last - first + 1; n > most {
				most, when = n, asked[first]
			}
		}
		t.Logf("at most %d requests in %v, %d are allowed", most, window, allowed)
		if most > allowed {
			t.Errorf("%d requests in %v from %s on, %d are allowed", most, window, when.Format("15:04:05.000"), allowed)
		}
	}
}

// Bench measures rebound side by side with what it is to be held against, on
// this machine, in one run: the bare fetch of the pages, which no program that
// follows page tokens can beat; the program that most people would write; and
// the program that a good programmer would write. Everyone reads the same job
// from the same simulated API and, but for the bare fetch, publishes it to the
// same broker, each as a process of its own, in turns.
//
//	go run ./internal/bench              one table
//	go run ./internal/bench -write docs  all of docs/performance.md, in some minutes
package main

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"rebound/internal/broker"
	"rebound/internal/memory"
	"rebound/internal/simulator"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "contender" {
		if err := contend(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// The names of the contenders, in the order in which they take turns.
const (
	bareFetch   = "bare fetch"
	exactlyOnce = "rebound exactly once"
	atLeastOnce = "rebound at least once"
	obvious     = "the obvious program"
	good        = "the good program"
)

var contenders = []string{bareFetch, exactlyOnce, atLeastOnce, obvious, good}

// setting is what is measured.
type setting struct {
	failures, rounds      int
	pageSize, recordBytes int
	partitions, jobs      int
	latency               time.Duration
	brokers               string // empty: an embedded one
	codec                 string // rebound's; the others' is lz4
}

// jobIDs are the ids of the setting's jobs.
func (s setting) jobIDs() []string {
	ids := make([]string, s.jobs)
	for i := range ids {
		ids[i] = fmt.Sprintf("bench%d=", i)
	}
	return ids
}

// measurement is one run of a contender.
type measurement struct {
	wall, cpu time.Duration
	peakRSS   int64
}

func run() error {
	var s setting
	var only, write string
	var guarded bool
	flag.IntVar(&s.failures, "failures", 200_000, "of all jobs together")
	flag.IntVar(&s.rounds, "rounds", 7, "how often each contender runs")
	flag.IntVar(&s.pageSize, "page-size", 1000, "failures a page")
	flag.IntVar(&s.recordBytes, "record-bytes", 530, "of a failure")
	flag.IntVar(&s.partitions, "partitions", 6, "of the topics")
	flag.IntVar(&s.jobs, "jobs", 1, "at once")
	flag.DurationVar(&s.latency, "latency", 0, "of each page")
	flag.StringVar(&s.brokers, "brokers", "", "publish to these instead of an embedded broker")
	flag.StringVar(&s.codec, "codec", "lz4", "rebound's compression; the others' is lz4")
	flag.StringVar(&only, "only", strings.Join(contenders, ","), "the contenders to run, separated by commas")
	flag.StringVar(&write, "write", "", "measure everything, and write it into this folder's performance.md and performance.svg")
	flag.BoolVar(&guarded, "guard", false, "fail where rebound has become markedly slower than it was, compared with the others")
	flag.Parse()

	folder, err := os.MkdirTemp("", "rebound-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	b := bench{rebound: filepath.Join(folder, "rebound")}
	if out, err := exec.Command("go", "build", "-o", b.rebound, "./cmd/rebound").CombinedOutput(); err != nil {
		return fmt.Errorf("build rebound: %w\n%s", err, out)
	}
	if write != "" {
		return b.report(s, write)
	}
	results, err := b.measureAll(s, strings.Split(only, ","))
	if err != nil {
		return err
	}
	fmt.Print(results.table())
	if guarded {
		return results.guard()
	}
	return nil
}

// bench runs contenders.
type bench struct {
	rebound string // the program
}

// results holds the measurements of each contender, one a round.
type results struct {
	setting
	names []string
	runs  map[string][]measurement
}

// measureAll runs the contenders in turns.
func (b bench) measureAll(s setting, names []string) (*results, error) {
	api, brokers, stop, err := s.start()
	if err != nil {
		return nil, err
	}
	defer stop()
	r := &results{setting: s, names: names, runs: make(map[string][]measurement)}
	for round := range s.rounds + 1 {
		for _, name := range names {
			m, err := b.measure(s, name, api, brokers)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if round > 0 { // the first round warms up
				r.runs[name] = append(r.runs[name], m)
			}
		}
	}
	return r, nil
}

// start starts the API and the broker inside this process.
func (s setting) start() (api, brokers string, stop func(), err error) {
	sim := simulator.New(simulator.Options{Latency: s.latency, PageSize: s.pageSize})
	for _, id := range s.jobIDs() {
		sim.Conjure(simulator.Conjured{ID: id, Failures: int64(s.failures / s.jobs), Plain: true, RecordBytes: s.recordBytes})
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", nil, err
	}
	server := &http.Server{Handler: sim}
	go server.Serve(listener)
	stop = func() { server.Close() }
	if brokers = s.brokers; brokers == "" {
		cluster, err := broker.Start(0, "")
		if err != nil {
			return "", "", nil, err
		}
		brokers = fmt.Sprintf("127.0.0.1:%d", broker.Port(cluster))
		stop = func() { server.Close(); cluster.Close() }
	}
	return "http://" + listener.Addr().String(), brokers, stop, nil
}

// measure runs a contender to its end.
func (b bench) measure(s setting, name, api, brokers string) (measurement, error) {
	topic := fmt.Sprintf("bench-%d", time.Now().UnixNano())
	command := exec.Command(os.Args[0], append([]string{"contender", name}, s.jobIDs()...)...)
	command.Env = append(os.Environ(), "BENCH_API="+api, "BENCH_BROKERS="+brokers, "BENCH_TOPIC="+topic, fmt.Sprintf("BENCH_PARTITIONS=%d", s.partitions))
	if delivery, ok := map[string]string{exactlyOnce: "exactly-once", atLeastOnce: "at-least-once"}[name]; ok {
		command = exec.Command(b.rebound, append([]string{"run"}, s.jobIDs()...)...)
		command.Env = append(os.Environ(), "FULLSTORY_API_KEY=key", "FULLSTORY_BASE_URL="+api, "KAFKA_BROKERS="+brokers,
			"FULLSTORY_RATE_LIMIT=1000000", "FULLSTORY_RATE_BURST=1000000", "KAFKA_TOPIC="+topic, "KAFKA_DELIVERY="+delivery,
			fmt.Sprintf("KAFKA_TOPIC_PARTITIONS=%d", s.partitions), fmt.Sprintf("JOB_CONCURRENCY=%d", s.jobs), "KAFKA_COMPRESSION="+s.codec, "LOG_LEVEL=error")
	}
	command.Stderr = os.Stderr
	began := time.Now()
	if err := command.Start(); err != nil {
		return measurement{}, err
	}
	peak := memory.Peak(command.Process.Pid)
	err := command.Wait()
	m := measurement{wall: time.Since(began), peakRSS: <-peak}
	if usage, ok := command.ProcessState.SysUsage().(*syscall.Rusage); ok {
		m.cpu = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	return m, err
}

// figures are the medians of a contender.
type figures struct {
	recordsPerSecond float64
	ofFetch          float64 // wall time, as a multiple of the bare fetch's of the same round
	cpuPerMillion    float64 // seconds
	peakMiB          float64
}

func (r *results) figures(name string) figures {
	list := r.runs[name]
	f := figures{
		recordsPerSecond: float64(r.failures) / median(list, func(m measurement) float64 { return m.wall.Seconds() }),
		cpuPerMillion:    median(list, func(m measurement) float64 { return m.cpu.Seconds() }) / float64(r.failures) * 1e6,
		peakMiB:          median(list, func(m measurement) float64 { return float64(m.peakRSS) / (1 << 20) }),
	}
	if fetch := r.runs[bareFetch]; fetch != nil {
		ratios := make([]float64, len(list))
		for i := range list {
			ratios[i] = list[i].wall.Seconds() / fetch[i].wall.Seconds()
		}
		slices.Sort(ratios)
		f.ofFetch = ratios[len(ratios)/2]
	}
	return f
}

func median(list []measurement, of func(measurement) float64) float64 {
	values := make([]float64, len(list))
	for i, m := range list {
		values[i] = of(m)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// table sums the measurements up.
func (r *results) table() string {
	var t strings.Builder
	fmt.Fprintf(&t, "%d failures in all, %d bytes each, pages of %d, %v a page, %d partitions, jobs: %d; medians of %d rounds.\n\n",
		r.failures, r.recordBytes, r.pageSize, r.latency, r.partitions, r.jobs, r.rounds)
	t.WriteString("| | records/s | wall time, bare fetch = 1 | CPU s a million records | peak memory |\n| --- | --- | --- | --- | --- |\n")
	for _, name := range r.names {
		f := r.figures(name)
		fmt.Fprintf(&t, "| %s | %.0f k | %.2f | %.2f | %.0f MiB |\n", name, f.recordsPerSecond/1000, f.ofFetch, f.cpuPerMillion, f.peakMiB)
	}
	return t.String()
}

// guard fails where the ratios are markedly worse than they were when they were
// last looked at: with these settings about 11 and 3.4, and a fifth of the CPU.
func (r *results) guard() error {
	mine, plain, fine := r.figures(exactlyOnce), r.figures(obvious), r.figures(good)
	for _, check := range []struct {
		what        string
		ratio, want float64
	}{
		{"records/s, of the obvious program's", mine.recordsPerSecond / plain.recordsPerSecond, 4},
		{"records/s, of the good program's", mine.recordsPerSecond / fine.recordsPerSecond, 1.5},
		{"CPU that the obvious program takes, of rebound's", plain.cpuPerMillion / mine.cpuPerMillion, 3},
	} {
		fmt.Printf("%s: %.2f, at least %.2f is wanted\n", check.what, check.ratio, check.want)
		if check.ratio < check.want {
			return fmt.Errorf("%s is %.2f, less than %.2f: the hot path has become slower", check.what, check.ratio, check.want)
		}
	}
	return nil
}

// Bench measures rebound side by side with what it is to be held against, on
// this machine, in one run: the bare fetch of the pages, which no program that
// follows page tokens can beat; the program that most people would write; and
// the program that a good programmer would write. Everyone reads the same job
// from the same simulated API and, but for the bare fetch, publishes it to the
// same broker, each as a process of its own, in turns.
//
//	go run ./internal/bench [-failures N] [-rounds N] [-latency 0s] [-write docs]
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
	"rebound/internal/simulator"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "contender" {
		if err := contend(os.Args[2]); err != nil {
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
	bareFetch    = "bare fetch"
	exactlyOnce  = "rebound exactly once"
	atLeastOnce  = "rebound at least once"
	obvious      = "the obvious program"
	good         = "the good program"
	jobID        = "bench="
	defaultBytes = 530
)

var contenders = []string{bareFetch, exactlyOnce, atLeastOnce, obvious, good}

// setting is what is measured.
type setting struct {
	failures, rounds      int
	pageSize, recordBytes int
	partitions            int
	latency               time.Duration
	brokers               string // empty: an embedded one
}

// measurement is one run of a contender.
type measurement struct {
	wall, cpu time.Duration
	peakRSS   int64
}

func run() error {
	var s setting
	var only string
	flag.IntVar(&s.failures, "failures", 200_000, "of the job")
	flag.IntVar(&s.rounds, "rounds", 7, "how often each contender runs")
	flag.IntVar(&s.pageSize, "page-size", 1000, "failures a page")
	flag.IntVar(&s.recordBytes, "record-bytes", defaultBytes, "of a failure")
	flag.IntVar(&s.partitions, "partitions", 6, "of the topics")
	flag.DurationVar(&s.latency, "latency", 0, "of each page")
	flag.StringVar(&s.brokers, "brokers", "", "publish to these instead of an embedded broker")
	flag.StringVar(&only, "only", "", "the contenders to run, separated by commas; all if empty")
	flag.Parse()

	folder, err := os.MkdirTemp("", "rebound-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	rebound := filepath.Join(folder, "rebound")
	if out, err := exec.Command("go", "build", "-o", rebound, "./cmd/rebound").CombinedOutput(); err != nil {
		return fmt.Errorf("build rebound: %w\n%s", err, out)
	}
	api, brokers, stop, err := s.start()
	if err != nil {
		return err
	}
	defer stop()

	names := contenders
	if only != "" {
		names = strings.Split(only, ",")
	}
	results := make(map[string][]measurement)
	for round := range s.rounds + 1 {
		for _, name := range names {
			m, err := measure(name, rebound, api, brokers, s.partitions, round)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if round > 0 { // the first round warms up
				results[name] = append(results[name], m)
			}
		}
	}
	fmt.Print(table(s, names, results))
	return nil
}

// start starts the API and the broker inside this process.
func (s setting) start() (api, brokers string, stop func(), err error) {
	sim := simulator.New(simulator.Options{Latency: s.latency, PageSize: s.pageSize})
	sim.Conjure(simulator.Conjured{ID: jobID, Failures: int64(s.failures), Plain: true, RecordBytes: s.recordBytes})
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
func measure(name, rebound, api, brokers string, partitions, round int) (measurement, error) {
	command := exec.Command(os.Args[0], "contender", name)
	topic := fmt.Sprintf("bench-%d-%d", time.Now().UnixNano(), round)
	command.Env = append(os.Environ(), "BENCH_API="+api, "BENCH_BROKERS="+brokers, "BENCH_TOPIC="+topic, fmt.Sprintf("BENCH_PARTITIONS=%d", partitions))
	if delivery, ok := map[string]string{exactlyOnce: "exactly-once", atLeastOnce: "at-least-once"}[name]; ok {
		command = exec.Command(rebound, "run", jobID)
		command.Env = append(os.Environ(), "FULLSTORY_API_KEY=key", "FULLSTORY_BASE_URL="+api, "KAFKA_BROKERS="+brokers,
			"FULLSTORY_RATE_LIMIT=1000000", "FULLSTORY_RATE_BURST=1000000", "KAFKA_TOPIC="+topic, "KAFKA_DELIVERY="+delivery,
			fmt.Sprintf("KAFKA_TOPIC_PARTITIONS=%d", partitions), "LOG_LEVEL=error")
	}
	command.Stderr = os.Stderr
	began := time.Now()
	if err := command.Start(); err != nil {
		return measurement{}, err
	}
	peak := watchMemory(command.Process.Pid)
	err := command.Wait()
	m := measurement{wall: time.Since(began), peakRSS: <-peak}
	if usage, ok := command.ProcessState.SysUsage().(*syscall.Rusage); ok {
		m.cpu = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	return m, err
}

// watchMemory returns the peak resident memory of a process once it has ended.
func watchMemory(pid int) <-chan int64 {
	result := make(chan int64, 1)
	go func() {
		var peak int64
		for {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				result <- peak
				return
			}
			if _, after, found := strings.Cut(string(status), "VmHWM:"); found {
				var kilobytes int64
				fmt.Sscan(after, &kilobytes)
				peak = max(peak, kilobytes<<10)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return result
}

// table sums the measurements up: medians, and ratios of runs of the same round.
func table(s setting, names []string, results map[string][]measurement) string {
	var t strings.Builder
	fmt.Fprintf(&t, "One job of %d failures, %d bytes each, pages of %d, %v a page, %d partitions; medians of %d rounds.\n\n",
		s.failures, s.recordBytes, s.pageSize, s.latency, s.partitions, s.rounds)
	t.WriteString("| | records/s | wall time : bare fetch | CPU s a million records | peak memory |\n| --- | --- | --- | --- | --- |\n")
	for _, name := range names {
		list := results[name]
		wall := median(list, func(m measurement) float64 { return m.wall.Seconds() })
		cpu := median(list, func(m measurement) float64 { return m.cpu.Seconds() })
		rss := median(list, func(m measurement) float64 { return float64(m.peakRSS >> 20) })
		ratio := 0.0
		if fetch := results[bareFetch]; fetch != nil {
			ratios := make([]float64, len(list))
			for i := range list {
				ratios[i] = list[i].wall.Seconds() / fetch[i].wall.Seconds()
			}
			slices.Sort(ratios)
			ratio = ratios[len(ratios)/2]
		}
		fmt.Fprintf(&t, "| %s | %.0f k | %.2f | %.2f | %.0f MiB |\n", name, float64(s.failures)/wall/1000, ratio, cpu/float64(s.failures)*1e6, rss)
	}
	return t.String()
}

func median(list []measurement, of func(measurement) float64) float64 {
	values := make([]float64, len(list))
	for i, m := range list {
		values[i] = of(m)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rebound/internal/kafkaproxy"
	"rebound/internal/simulator"
)

// TestChaos is the proof on real brokers that .ci/kafka has started: rebound is
// killed again and again, so are the brokers, and the proxy between them loses
// acknowledgements and cuts connections. What comes of it is read by librdkafka
// (kcat) and compared by a program that shares no code with rebound.
//
// REBOUND_CHAOS says how much: short, or long (.ci/chaos). REBOUND_SEED repeats
// the choices of an earlier run; processes keep their own time all the same.
func TestChaos(t *testing.T) {
	size := map[string]chaos{
		"short": {jobs: 4, failures: 2500, kills: 12, outages: 1},
		"long":  {jobs: 20, failures: 10_000, kills: 100, outages: 3},
	}[os.Getenv("REBOUND_CHAOS")]
	if size.jobs == 0 || os.Getenv("KAFKA_PROXIED") == "" {
		t.Skip("needs brokers of its own: see .ci/chaos; the short form on an embedded cluster is TestKilledAnywhere")
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("REBOUND_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("seed %d", seed)
	w := newWatched(t, simulator.Options{Latency: 100 * time.Millisecond, Seed: seed})
	w.env["COMMIT_INTERVAL"] = "150ms"
	size.run(t, w, rand.New(rand.NewPCG(seed, 0)))
}

// chaos says how much of it there is.
type chaos struct {
	jobs, failures int
	kills          int // of rebound
	outages        int // of each broker
}

func (c chaos) run(t *testing.T, w *watched, random *rand.Rand) {
	var ids []string
	addJobs := func(n int) {
		for range n {
			id := fmt.Sprintf("chaos/%d+=", len(ids))
			ids = append(ids, id)
			w.conjure(id, int64(c.failures), 50)
		}
	}
	addJobs(c.jobs)

	var mu sync.Mutex
	lost := 0
	w.set(func(e kafkaproxy.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if e.Moment != kafkaproxy.Answered && random.Float64() < 0.002 {
			lost++
			return kafkaproxy.ErrCut
		}
		return nil
	})
	outages := make(chan int)
	go func() {
		n := 0
		for range c.outages {
			for broker := 1; broker <= 3; broker++ {
				n += outage(t, broker)
			}
		}
		outages <- n
	}()

	began := time.Now()
	kills, brokersDown, calm := 0, 0, false
	for kills < c.kills || !calm {
		command, stderr := w.start(append([]string{"run"}, ids...)...)
		done := make(chan error, 1)
		go func() { done <- command.Wait() }()
		mu.Lock()
		life := time.Duration(200+random.IntN(1000)) * time.Millisecond
		mu.Unlock()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("rebound ended by itself: %v\n%s", err, stderr)
			}
			addJobs(2) // more work, until it was killed often enough
		case <-time.After(life):
			command.Process.Kill()
			<-done
			kills++
		}
		select {
		case brokersDown = <-outages:
			calm = true
		default:
		}
	}
	w.set(nil)
	w.run(append([]string{"run"}, ids...), "JOB_CONCURRENCY=20").must(t, 0)
	list := w.run([]string{"jobs", "--state", "done"}).must(t, 0)
	if done := len(lines(list.stdout)); done != len(ids) {
		t.Errorf("%d jobs are done, want %d", done, len(ids))
	}
	mu.Lock()
	t.Logf("in %v: rebound killed %d times, brokers %d times, %d connections cut", time.Since(began).Round(time.Second), kills, brokersDown, lost)
	mu.Unlock()
	w.compareWithKcat(ids)
}

// outage kills a broker and starts it again.
func outage(t *testing.T, broker int) int {
	for _, step := range []struct {
		what string
		then time.Duration
	}{{"kill", 4 * time.Second}, {"restart", 8 * time.Second}} {
		if out, err := exec.Command("../../.ci/kafka", step.what, strconv.Itoa(broker)).CombinedOutput(); err != nil {
			t.Errorf("%s broker %d: %v\n%s", step.what, broker, err, out)
			return 0
		}
		time.Sleep(step.then) // the brokers' own time
	}
	return 1
}

// compareWithKcat reads the topics with kcat and has .ci/compare.py compare what
// came with what the simulator holds.
func (w *world) compareWithKcat(ids []string) {
	w.t.Helper()
	w.consume(w.env["KAFKA_TOPIC"]) // waits until no transaction is open
	file := filepath.Join(w.t.TempDir(), "messages")
	for _, topic := range []string{w.env["KAFKA_TOPIC"], w.env["KAFKA_TOPIC"] + ".dead-letter"} {
		command := exec.Command("sh", "-c", `kcat -b "$0" -C -t "$1" -o beginning -e -q -J -X isolation.level=read_committed >>"$2"`,
			w.env["KAFKA_BROKERS"], topic, file)
		if out, err := command.CombinedOutput(); err != nil {
			w.t.Fatalf("kcat: %v\n%s", err, out)
		}
	}
	messages, err := os.Open(file)
	if err != nil {
		w.t.Fatal(err)
	}
	defer messages.Close()
	command := exec.Command("python3", append([]string{"../../.ci/compare.py", w.env["FULLSTORY_BASE_URL"]}, ids...)...)
	command.Stdin = messages
	out, err := command.CombinedOutput()
	w.t.Logf("kcat and .ci/compare.py: %s", bytes.TrimSpace(out))
	if err != nil {
		w.t.Error(err)
	}
}

// TestKafkaReadsTheBatches has Kafka's own tool look at the log: the batches that
// we stamp are valid, transactional, compressed as asked, and their sequences
// follow each other.
func TestKafkaReadsTheBatches(t *testing.T) {
	logs := os.Getenv("KAFKA_LOGS")
	if logs == "" {
		t.Skip("needs the log of brokers that .ci/kafka has started: KAFKA_LOGS; TestEveryCompressionIsRead is the short form")
	}
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			w := newWorld(t, simulator.Options{})
			w.conjure("dump=", 3000, 100)
			w.run([]string{"run", "dump="}, "KAFKA_COMPRESSION="+codec, "COMMIT_INTERVAL=0s").must(t, 0)
			w.consume(w.env["KAFKA_TOPIC"]) // waits until the markers are written
			segments, err := filepath.Glob(filepath.Join(logs, "1", "log", w.env["KAFKA_TOPIC"]+"*-[0-9]*", "*.log"))
			if err != nil || len(segments) == 0 {
				t.Fatalf("no segments below %s: %v", logs, err)
			}
			out, err := exec.Command("../../.ci/kafka", "tool", "org.apache.kafka.tools.DumpLogSegments", "--files", strings.Join(segments, ",")).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			checkDump(t, codec, string(out))
		})
	}
}

var batchLine = regexp.MustCompile(`count: (\d+) baseSequence: (-?\d+) lastSequence: (-?\d+) producerId: (\d+) producerEpoch: (\d+) .*isTransactional: (\w+) isControl: (\w+) .*compresscodec: (\w+) .*isvalid: (\w+)`)

func checkDump(t *testing.T, codec, dump string) {
	t.Helper()
	batches, compressed := 0, 0
	next := make(map[string]int) // sequence, by segment, producer and epoch
	segment := ""
	for _, line := range lines(dump) {
		if strings.HasPrefix(line, "Dumping ") {
			segment = line
			continue
		}
		if !strings.HasPrefix(line, "baseOffset") {
			continue
		}
		m := batchLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("cannot read %q", line)
		}
		if m[9] != "true" || m[6] != "true" {
			t.Errorf("not valid or not transactional: %s", line)
		}
		if m[7] == "true" {
			continue // a marker, the broker's own
		}
		batches++
		if strings.EqualFold(m[8], codec) {
			compressed++
		}
		count, _ := strconv.Atoi(m[1])
		base, _ := strconv.Atoi(m[2])
		producer := segment + m[4] + "/" + m[5]
		if base != next[producer] {
			t.Errorf("sequence %d where %d follows: %s", base, next[producer], line)
		}
		next[producer] = base + count
	}
	// Batches of a few records may be shorter without compression.
	if batches < 10 || compressed*10 < batches*8 {
		t.Errorf("%d batches, %d of them with %s", batches, compressed, codec)
	}
	t.Logf("%s: %d batches of %d producer epochs and partitions, all valid and transactional", codec, batches, len(next))
}

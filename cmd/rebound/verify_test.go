package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"rebound/internal/kafkaproxy"
	"rebound/internal/simulator"
)

// plainJob is a job whose failures do not depend on how many there are.
func plainJob(id string, failures int64) simulator.Conjured {
	return simulator.Conjured{ID: id, Failures: failures, PageSize: 50, Plain: true}
}

// mustFind runs verify, which must fail and say these lines.
func (w *world) mustFind(id string, want ...string) {
	w.t.Helper()
	r := w.run([]string{"verify", id}).must(w.t, 1)
	squeezed := strings.Join(strings.Fields(r.stdout), " ")
	for _, text := range want {
		if !strings.Contains(squeezed, text) {
			w.t.Errorf("verify does not say %q, but\n%s", text, r.stdout)
		}
	}
	if !strings.Contains(r.stderr, "not everything is there once") {
		w.t.Errorf("standard error says\n%s", r.stderr)
	}
}

func TestVerifyFindsWhatIsWrong(t *testing.T) {
	w := newWorld(t, simulator.Options{}, kfake.NumBrokers(1))
	w.env["KAFKA_TOPIC_PARTITIONS"] = "1"

	t.Run("missing: retention took the first records away", func(t *testing.T) {
		w.t = t
		w.api.Conjure(plainJob("missing=", 500))
		w.run([]string{"run", "missing="}).must(t, 0)
		if err := w.cluster.DeleteRecords(w.env["KAFKA_TOPIC"], 0, 3); err != nil {
			t.Fatal(err)
		}
		w.mustFind("missing=", "expected 500 present 497 missing 3 missing=/0 missing=/1 missing=/2 repeated 0 different 0 unexpected 0")
	})
	t.Run("different: FullStory says something else now", func(t *testing.T) {
		w.t = t
		w.api.Conjure(plainJob("different=", 100))
		w.run([]string{"run", "different="}).must(t, 0)
		w.conjure("different=", 100, 50)
		w.mustFind("different=", "expected 100 present 0 missing 0 repeated 0 different 100 different=/0", "…")
	})
	t.Run("unexpected: FullStory has fewer failures now", func(t *testing.T) {
		w.t = t
		w.api.Conjure(plainJob("fewer=", 100))
		w.run([]string{"run", "fewer="}).must(t, 0)
		w.api.Conjure(plainJob("fewer=", 98))
		w.mustFind("fewer=", "expected 98 present 98 missing 0 repeated 0 different 0 unexpected 2 fewer=/98 fewer=/99")
	})
	t.Run("repeated: somebody else published it, too", func(t *testing.T) {
		w.t = t
		job := plainJob("repeated=", 100)
		job.Claimed = 120 // so that the run is not done
		w.api.Conjure(job)
		w.run([]string{"run", "repeated="}).must(t, 1)
		var copied []*kgo.Record
		for _, m := range w.consume(w.env["KAFKA_TOPIC"]) {
			if strings.HasPrefix(m.headers, "job: repeated=;") && m.index == 7 {
				record := &kgo.Record{Topic: w.env["KAFKA_TOPIC"], Key: []byte(m.key), Value: []byte(m.value)}
				for pair := range strings.SplitSeq(strings.TrimSuffix(m.headers, "; "), "; ") {
					name, value, _ := strings.Cut(pair, ": ")
					record.Headers = append(record.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
				}
				copied = append(copied, record, record)
			}
		}
		client, err := kgo.NewClient(kgo.SeedBrokers(w.cluster.ListenAddrs()...))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if err := client.ProduceSync(t.Context(), copied...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		w.api.Conjure(plainJob("repeated=", 120))
		w.run([]string{"run", "repeated="}).must(t, 0)
		w.mustFind("repeated=", "expected 120 present 120 missing 0 repeated 2 repeated=/7 repeated=/7 different 0 unexpected 0")
	})
}

// What at-least-once promises: after crashes everything is there, and what is
// there twice is the same.
func TestKilledAtLeastOnce(t *testing.T) {
	w := newWatched(t, simulator.Options{Latency: 5 * time.Millisecond})
	w.env["KAFKA_DELIVERY"] = "at-least-once"
	w.conjure("least=", 3000, 50)
	kills := 0
	for ; kills < 5; kills++ {
		command, _ := w.start("run", "least=")
		before := len(w.api.Arrivals())
		for len(w.api.Arrivals()) < before+8 {
			time.Sleep(time.Millisecond) // until it is under way
		}
		command.Process.Kill()
		command.Wait()
	}
	w.run([]string{"run", "least="}).must(t, 0)
	users, _ := w.truth("least=", 3000, 1)
	got := w.consume(w.env["KAFKA_TOPIC"])
	seen := make(map[int64]message)
	for _, m := range got {
		m.topic = ""
		if before, ok := seen[m.index]; ok && before != m {
			t.Errorf("%d comes again and is different", m.index)
		}
		seen[m.index] = m
	}
	for _, m := range users {
		if seen[m.index] != m {
			t.Fatalf("%d is missing or different", m.index)
		}
	}
	t.Logf("killed %d times: %d messages for %d failures", kills, len(got), len(users))
}

func TestASecondSignalLeavesAtOnceAndLosesNothing(t *testing.T) {
	w := newWatched(t, simulator.Options{Latency: 5 * time.Millisecond})
	w.conjure("stuck=", 2000, 50)
	w.conjure("topics=", 1, 1)
	w.run([]string{"run", "topics="}).must(t, 0)
	stuck, release := make(chan struct{}), make(chan struct{})
	commits := 0
	w.set(func(e kafkaproxy.Event) error { // the third commit gets no answer
		const endTxn = 26
		if e.API == endTxn && e.Moment == kafkaproxy.Arrived {
			if commits++; commits == 3 {
				close(stuck)
				<-release
			}
		}
		return nil
	})
	command, stderr := w.start("run", "stuck=")
	<-stuck
	began := time.Now()
	command.Process.Signal(syscall.SIGTERM)
	time.Sleep(100 * time.Millisecond) // between a person's two signals
	command.Process.Signal(syscall.SIGTERM)
	command.Wait()
	if took := time.Since(began); command.ProcessState.ExitCode() != 143 || took > time.Second {
		t.Errorf("exit status %d after %v:\n%s", command.ProcessState.ExitCode(), took, stderr)
	}
	w.set(nil)
	close(release)
	w.run([]string{"run", "stuck="}).must(t, 0)
	w.mustBePublished("stuck=", 2000, 1)
}

func TestAHundredThousandJobsAreListedQuickly(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: makes 100,000 progress records; the short form is TestJobsAreListedByStateAndTime")
	}
	w := newWorld(t, simulator.Options{})
	w.conjure("last=", 1, 1)
	w.run([]string{"run", "last="}).must(t, 0)
	client := w.client(kgo.DefaultProduceTopic(w.env["KAFKA_TOPIC"] + ".progress"))
	const jobs = 100_000
	for i := range jobs {
		id := fmt.Sprint("job-", i)
		value := fmt.Sprintf(`{"job_id":%q,"run":1,"state":"done","pages":12,"published":12000,"total_records":12000,"started_at":"2025-11-24T06:14:03.881537228Z","updated_at":"2025-11-24T06:14:04.007832156Z","written":[{"topic":"t","partition":0,"first":17,"end":12345}]}`, id)
		client.Produce(t.Context(), &kgo.Record{Key: []byte(id), Value: []byte(value)}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r := w.run([]string{"jobs"}).must(t, 0)
	took := time.Since(began)
	list := lines(r.stdout)
	if len(list) != jobs+1 || list[jobs] != "last=" {
		t.Errorf("%d jobs are listed, the last one is %q", len(list), list[len(list)-1])
	}
	t.Logf("%d jobs listed in %v, peak memory %d MiB", len(list), took, r.peakRSS>>20)
	// And a job among them starts without delay.
	began = time.Now()
	if r := w.run([]string{"run", "job-77777"}).must(t, 0); !strings.Contains(r.stdout, "skipped") {
		t.Errorf("it says\n%s", r.stdout)
	}
	t.Logf("one of them looked up in %v", time.Since(began))
}

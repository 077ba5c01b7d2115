package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"rebound/internal/simulator"
)

func TestRunPublishesEveryFailureOnce(t *testing.T) {
	w := newWorld(t, simulator.Options{Seed: 7})
	w.conjure("abd123=", 12_345, 1000)
	r := w.run([]string{"run", "abd123="}).must(t, 0)
	if !strings.Contains(r.stdout, "abd123=  done   1    12345      0              12345") {
		t.Errorf("the summary is\n%s", r.stdout)
	}
	w.mustBePublished("abd123=", 12_345, 1)
	if p := w.progress("abd123="); p["state"] != "done" || p["published"] != 12345.0 || p["pages"] != 13.0 || p["run"] != 1.0 || p["next_page_token"] != "" {
		t.Errorf("progress is %v", p)
	}
}

func TestRunThroughEveryFaultAtOnce(t *testing.T) {
	faults, err := simulator.ParseFaults("all=0.03,429=0.01,garbage=0.003")
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, simulator.Options{Seed: seed, Faults: faults})
			w.conjure("garbage/+=", 3000, 100)
			w.run([]string{"run", "garbage/+="}).must(t, 0)
			w.mustBePublished("garbage/+=", 3000, 1)
			w.run([]string{"verify", "garbage/+="}).must(t, 0)
		})
	}
}

func TestRunAtLeastOncePublishesTheSame(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	w.env["KAFKA_DELIVERY"] = "at-least-once"
	w.conjure("job=", 5000, 500)
	w.run([]string{"run", "job="}).must(t, 0)
	w.mustBePublished("job=", 5000, 1)
	if r := w.run([]string{"run", "job="}).must(t, 0); !strings.Contains(r.stdout, "skipped") {
		t.Errorf("the summary is\n%s", r.stdout)
	}
}

func TestEveryCompressionIsRead(t *testing.T) {
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			w := newWorld(t, simulator.Options{})
			w.conjure("job=", 500, 100)
			w.run([]string{"run", "job="}, "KAFKA_COMPRESSION="+codec).must(t, 0)
			w.mustBePublished("job=", 500, 1)
		})
	}
}

func TestADoneJobIsSkippedAndReplayIsANewRun(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	w.conjure("job=", 1000, 100)
	w.run([]string{"run", "job="}).must(t, 0)
	if r := w.run([]string{"run", "job="}).must(t, 0); !strings.Contains(r.stderr, "skipped") || !strings.Contains(r.stdout, "skipped") {
		t.Errorf("it is not said that the job is skipped:\n%s\n%s", r.stdout, r.stderr)
	}
	w.run([]string{"run", "--replay", "job="}).must(t, 0)
	w.mustBePublished("job=", 1000, 1)
	w.mustBePublished("job=", 1000, 2)
	r := w.run([]string{"verify", "job="}).must(t, 0)
	if !strings.Contains(r.stdout, "run 2, done") || !strings.Contains(r.stdout, "present     1000") {
		t.Errorf("verify says\n%s", r.stdout)
	}
}

func TestJobsOfAFileAndOfStandardInput(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	file := filepath.Join(t.TempDir(), "jobs")
	os.WriteFile(file, []byte("# of May\none=\n\n  two/+=  # the second\r\none=\n"), 0o600)
	w.conjure("one=", 10, 5)
	w.conjure("two/+=", 20, 5)
	w.conjure("three=", 0, 5)
	r := w.run([]string{"run", "three=", "--jobs-file", file}).must(t, 0)
	if got := len(lines(r.stdout)); got != 4 {
		t.Errorf("the summary of three jobs has %d lines:\n%s", got, r.stdout)
	}
	w.mustBePublished("one=", 10, 1)
	w.mustBePublished("two/+=", 20, 1)

	// A backfill is one pipe.
	list := w.run([]string{"jobs", "--since", "1h"}).must(t, 0)
	if got := lines(list.stdout); len(got) != 3 {
		t.Fatalf("jobs lists %q", got)
	}
	ctx := t.Context()
	command := w.command(ctx, []string{"run", "--replay", "--jobs-file", "-"})
	command.Stdin = strings.NewReader(list.stdout)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.mustBePublished("two/+=", 20, 2)
}

func TestJobsAreListedByStateAndTime(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	w.conjure("done=", 10, 5)
	w.run([]string{"run", "done=", "gone="}).must(t, 1)
	for _, c := range []struct {
		arguments string
		want      string
	}{
		{"--state done", "done=\n"},
		{"--state failed", "gone=\n"},
		{"--state running", ""},
		{"--since 2000-01-01 --state done", "done=\n"},
		{"--until 2000-01-01", ""},
		{"--until " + time.Now().UTC().Format(time.DateOnly) + " --state done", "done=\n"},
		{"--since 0s", ""},
	} {
		if r := w.run(append([]string{"jobs"}, strings.Fields(c.arguments)...)).must(t, 0); r.stdout != c.want {
			t.Errorf("jobs %s lists %q, want %q", c.arguments, r.stdout, c.want)
		}
	}
	r := w.run([]string{"jobs", "--json", "--state", "failed"}).must(t, 0)
	var record struct{ JobID, State, Reason string }
	if err := json.Unmarshal([]byte(strings.ReplaceAll(r.stdout, "job_id", "JobID")), &record); err != nil || record.JobID != "gone=" || !strings.Contains(record.Reason, "404") {
		t.Errorf("--json prints %s (%v)", r.stdout, err)
	}
}

func TestOneFailedJobStopsNoOther(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	w.conjure("good=", 100, 10)
	r := w.run([]string{"run", "bad=", "good="}).must(t, 1)
	w.mustBePublished("good=", 100, 1)
	if !strings.Contains(r.stderr, "rebound: job bad=: FullStory answers 404 Not Found (not_found: No import job has this id): check the job id") {
		t.Errorf("standard error says\n%s", r.stderr)
	}
	if p := w.progress("bad="); p["state"] != "failed" {
		t.Errorf("progress is %v", p)
	}
	// Once the API has the job, running it again works.
	w.conjure("bad=", 100, 10)
	w.run([]string{"run", "bad="}).must(t, 0)
	w.mustBePublished("bad=", 100, 1)
}

func TestTheDryRunPrintsTheSameMessages(t *testing.T) {
	w := newWorld(t, simulator.Options{Faults: simulator.Faults{simulator.Garbage: 0.01}, Seed: 3})
	w.conjure("dry=", 2000, 100)
	r := w.run([]string{"run", "--sink", "stdout", "dry="}, "KAFKA_BROKERS=").must(t, 0)
	var users, deadLetters []message
	for _, line := range lines(r.stdout) {
		var printed struct {
			Topic, Key  string
			Headers     json.RawMessage
			Value       string
			ValueBase64 []byte `json:"value_base64"`
		}
		if err := json.Unmarshal([]byte(line), &printed); err != nil {
			t.Fatalf("%.200s: %v", line, err)
		}
		m := message{key: printed.Key, value: printed.Value + string(printed.ValueBase64)}
		decoder := json.NewDecoder(bytes.NewReader(printed.Headers))
		decoder.Token()
		for decoder.More() {
			name, _ := decoder.Token()
			value, _ := decoder.Token()
			m.headers += fmt.Sprintf("%s: %s; ", name, value)
			if name == "id" {
				fmt.Sscanf(value.(string), "dry=/%d", &m.index)
			}
		}
		if strings.HasSuffix(printed.Topic, ".dead-letter") {
			deadLetters = append(deadLetters, m)
		} else {
			users = append(users, m)
		}
	}
	wantUsers, wantDeadLetters := w.truth("dry=", 2000, 1)
	mustMatch(t, "users", users, wantUsers)
	mustMatch(t, "dead letters", joined(t, deadLetters), wantDeadLetters)
}

func TestASignalStopsCleanlyAndTheNextRunGoesOn(t *testing.T) {
	for _, c := range []struct {
		signal syscall.Signal
		status int
	}{{syscall.SIGINT, 130}, {syscall.SIGTERM, 143}} {
		t.Run(c.signal.String(), func(t *testing.T) {
			w := newWorld(t, simulator.Options{Latency: 20 * time.Millisecond})
			w.conjure("long=", 5_000, 50)
			command := w.command(t.Context(), []string{"run", "long="})
			var stdout, stderr bytes.Buffer
			command.Stdout, command.Stderr = &stdout, &stderr
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			for len(w.api.Arrivals()) < 30 {
				time.Sleep(time.Millisecond) // until it is under way
			}
			began := time.Now()
			command.Process.Signal(c.signal)
			r := finish(t, command, command.Wait(), &stdout, &stderr).must(t, c.status)
			if took := time.Since(began); took > time.Second {
				t.Errorf("stopping took %v", took)
			}
			if !strings.Contains(r.stderr, "run the same command again") || !strings.Contains(r.stdout, "stopped") {
				t.Errorf("it is not said how to go on:\n%s\n%s", r.stdout, r.stderr)
			}
			if p := w.progress("long="); p["state"] != "running" || p["published"].(float64) < 1000 {
				t.Errorf("progress is %v", p)
			}
			w.run([]string{"run", "long="}).must(t, 0)
			w.mustBePublished("long=", 5_000, 1)
			if asked := len(w.api.Arrivals()); asked > 105 {
				t.Errorf("%d requests for 100 pages: it began anew", asked)
			}
		})
	}
}

func TestMemoryDoesNotGrowWithTheJob(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: a million failures; the short form is TestRunPublishesEveryFailureOnce")
	}
	w := newWorld(t, simulator.Options{})
	var peak []int64
	for _, failures := range []int64{10_000, 1_000_000} {
		id := fmt.Sprint("job", failures)
		w.api.Conjure(simulator.Conjured{ID: id, Failures: failures, Plain: true})
		r := w.run([]string{"run", id}, "COMMIT_INTERVAL=1s").must(t, 0)
		peak = append(peak, r.peakRSS>>20)
	}
	t.Logf("peak memory: %d MiB with 10,000 failures, %d MiB with 1,000,000", peak[0], peak[1])
	if peak[1] >= 64 {
		t.Errorf("peak memory is %d MiB, 64 are allowed", peak[1])
	}
}

// The guard of the hot path: nothing is allocated for each record.
func TestARecordNeedsNoAllocations(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	const failures = 200_000
	w.api.Conjure(simulator.Conjured{ID: "allocations=", Failures: failures, Plain: true})
	r := w.run([]string{"run", "allocations="}, "LOG_LEVEL=debug", "COMMIT_INTERVAL=1s").must(t, 0)
	for _, line := range lines(r.stderr) {
		var logged struct {
			Msg         string
			Allocations float64
		}
		if json.Unmarshal([]byte(line), &logged) == nil && logged.Msg == "memory" {
			t.Logf("%.3f allocations a record, over the whole process", logged.Allocations/failures)
			if logged.Allocations/failures > 0.5 {
				t.Errorf("%.2f allocations a record, 0.5 are allowed", logged.Allocations/failures)
			}
			return
		}
	}
	t.Errorf("it does not say what it allocated:\n%s", r.stderr)
}

func TestAHugePageNeedsItsOwnSize(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: pages of 300 MB; the short form is TestALargePageIsManyBatches in package pipeline")
	}
	w := newWorld(t, simulator.Options{})
	const user, users = 4 << 20, 75
	w.api.Conjure(simulator.Conjured{ID: "huge=", Failures: 2 * users, PageSize: users, Plain: true, RecordBytes: user})
	r := w.run([]string{"run", "huge="}).must(t, 0)
	t.Logf("peak memory with pages of %d MiB: %d MiB", user*users>>20, r.peakRSS>>20)
	if most := int64(user*users + 4*user + 64<<20); r.peakRSS > most {
		t.Errorf("peak memory is %d MiB, %d are allowed", r.peakRSS>>20, most>>20)
	}
	if p := w.progress("huge="); p["state"] != "done" || p["dead_lettered"] != 2.0*users {
		t.Errorf("progress is %v", p)
	}
}

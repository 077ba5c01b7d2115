package main

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"rebound/internal/simulator"
)

// events returns the topic of failed events.
func (w *world) events() string { return w.env["KAFKA_TOPIC"] + ".events" }

func TestFailedEventsArePublishedOnce(t *testing.T) {
	faults, err := simulator.ParseFaults("all=0.02,garbage=0.003")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, simulator.Options{Seed: 3, Faults: faults})
	w.api.Conjure(simulator.Conjured{Kind: simulator.Events, ID: "ev/4+56=", Failures: 12_345, PageSize: 500})
	w.run([]string{"run", "--kind", "events", "ev/4+56="}).must(t, 0)
	w.mustBePublishedOf(simulator.Events, w.events(), "ev/4+56=", 12_345, 1)
	w.run([]string{"verify", "--kind", "events", "ev/4+56="}).must(t, 0)
	if r := w.run([]string{"run", "--kind", "events", "ev/4+56="}).must(t, 0); !strings.Contains(r.stdout, "skipped") {
		t.Errorf("a job that is done is published again:\n%s", r.stdout)
	}
	w.run([]string{"run", "--kind", "events", "--replay", "ev/4+56="}).must(t, 0)
	w.mustBePublishedOf(simulator.Events, w.events(), "ev/4+56=", 12_345, 2)
	if r := w.run([]string{"jobs", "--kind", "events"}).must(t, 0); r.stdout != "ev/4+56=\n" {
		t.Errorf("the jobs of events are %q", r.stdout)
	}
}

func TestAJobOfEventsGoesOnWhereItWasKilled(t *testing.T) {
	w := newWorld(t, simulator.Options{Latency: 2 * time.Millisecond})
	w.api.Conjure(simulator.Conjured{Kind: simulator.Events, ID: "ev=", Failures: 20_000, PageSize: 100})
	for kill := range 3 {
		command := w.command(t.Context(), []string{"run", "--kind", "events", "ev="})
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, 30*time.Second, "pages asked for", func() bool { return len(w.api.Arrivals()) >= 40*(kill+1) })
		command.Process.Signal(syscall.SIGKILL)
		command.Wait()
	}
	w.run([]string{"run", "--kind", "events", "ev="}).must(t, 0)
	w.mustBePublishedOf(simulator.Events, w.events(), "ev=", 20_000, 1)
}

// A job of users and one of events may have the same id.
func TestServeTakesBothKinds(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	w.conjure("same=", 700, 100)
	w.api.Conjure(simulator.Conjured{Kind: simulator.Events, ID: "same=", Failures: 900, PageSize: 100})
	w.api.Conjure(simulator.Conjured{Kind: simulator.Events, ID: "posted=", Failures: 30})
	i := w.serve()
	w.order("same=", `{"job_id":"same=","kind":"events"}`)
	status, body, _ := i.call("POST", "/jobs", `{"job_ids":["posted="],"kind":"events"}`)
	if status != 202 {
		t.Fatalf("%d %s", status, body)
	}
	i.awaitState(20*time.Second, "same=", 1, "done")
	i.awaitState(20*time.Second, "same=?kind=events", 1, "done")
	i.awaitState(20*time.Second, "posted=", 1, "done") // there is none of users
	w.mustBePublished("same=", 700, 1)
	w.mustBePublishedOf(simulator.Events, w.events(), "same=", 900, 1)
	w.mustBePublishedOf(simulator.Events, w.events(), "posted=", 30, 1)
	if status, body, _ = i.call("POST", "/jobs", `{"job_ids":["x="],"kind":"sessions"}`); status != 400 || !strings.Contains(body, "users or events") {
		t.Errorf("%d %s", status, body)
	}
	i.terminate()

	// Another instance knows the topics of events from the start.
	w.serve().awaitState(20*time.Second, "same=?kind=events", 1, "done")
}

// Where the topics of events are not there and may not be made, their jobs wait
// for them, and hold up no others.
func TestJobsOfEventsWaitForTheirTopics(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	w.conjure("users=", 50, 10)
	w.conjure("more=", 50, 10)
	w.api.Conjure(simulator.Conjured{Kind: simulator.Events, ID: "ev=", Failures: 70, PageSize: 10})
	w.api.Conjure(simulator.Conjured{Kind: simulator.Events, ID: "none=", Failures: 0})
	i := w.serve()
	i.submit(false, "users=")
	i.awaitState(20*time.Second, "users=", 1, "done") // the topics of users are there
	i.terminate()

	i = w.serve("KAFKA_CREATE_TOPICS=false")
	w.order(`{"job_id":"ev=","kind":"events"}`)
	i.awaitState(20*time.Second, "ev=?kind=events", 0, "parked")
	if _, body, _ := i.call("GET", "/jobs/ev=?kind=events", ""); !strings.Contains(body, "no topic "+w.events()) {
		t.Errorf("it waits for %s", body)
	}
	i.submit(false, "more=")
	i.awaitState(20*time.Second, "more=", 1, "done")
	w.run([]string{"run", "--kind", "events", "none="}).must(t, 0) // makes the topics
	i.awaitState(30*time.Second, "ev=?kind=events", 1, "done")
	w.mustBePublishedOf(simulator.Events, w.events(), "ev=", 70, 1)
}

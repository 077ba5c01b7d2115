package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"rebound/config"
	"rebound/examples/reprocess/mend"
	"rebound/internal/simulator"
)

// What fails is mended and imported again until nothing fails that a rule can
// mend. Whoever does it once more, after a crash say, imports nobody twice.
func TestTheLoopCloses(t *testing.T) {
	w := newWorld(t, simulator.Options{PageSize: 200, APIKey: "key"})
	c := &config.Config{FullStoryBaseURL: w.env["FULLSTORY_BASE_URL"], FullStoryAPIKey: config.NewSecret("key")}
	i := w.serve()
	id, err := importLoopUsers(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	i.submit(false, id)

	topic := w.env["KAFKA_TOPIC"]
	loop := func(group string) (left int, jobs []string) {
		client := w.client(kgo.ConsumerGroup(topic+group), kgo.ConsumeTopics(topic, topic+".progress"),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.DisableAutoCommit())
		m := mend.Mender{
			Rules: mend.ExampleRules(), BaseURL: c.FullStoryBaseURL, APIKey: "key", Serve: i.url, Topic: topic,
			Report: func(r mend.Report) {
				left += len(r.Left)
				jobs = append(jobs, r.NewJobs...)
			},
		}
		if err := m.Run(t.Context(), client, id); err != nil {
			t.Fatal(err)
		}
		return left, jobs
	}
	left, jobs := loop("-first")
	imported := 0
	for _, id := range append([]string{id}, jobs...) {
		n, err := jobImports(t.Context(), c, id)
		if err != nil {
			t.Fatal(err)
		}
		imported += n
	}
	if imported != 4946 || left != 54 || len(jobs) < 2 {
		t.Errorf("%d users imported, %d left, by jobs %v", imported, left, jobs)
	}
	if _, again := loop("-second"); !slices.Equal(again, jobs) {
		t.Errorf("done again, it makes the jobs %v, not %v", again, jobs)
	}
	if posts := strings.Count(fmt.Sprint(w.api.Arrivals()), "POST"); posts != 1+2*len(jobs) {
		t.Errorf("%d imports were asked for", posts)
	}
}

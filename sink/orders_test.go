package sink

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"rebound/pipeline"
)

func TestAHeartbeatTellsWhoIsNoMember(t *testing.T) {
	k, _ := openSink(t)
	group, err := k.ConsumerGroup(kafka.ConsumerGroupConfig{ID: "members-" + k.options.Topics.Jobs})
	must(t, err)
	defer group.Close()
	generation, err := group.Next(t.Context())
	for errors.Is(err, kafka.GroupCoordinatorNotAvailable) || errors.Is(err, kafka.NotCoordinatorForGroup) {
		generation, err = group.Next(t.Context())
	}
	must(t, err)
	// It takes a moment until all brokers know the group's coordinator.
	must(t, k.retry(t.Context(), "heartbeat", func(ctx context.Context) error { return k.Heartbeat(ctx, generation) }))
	for name, stranger := range map[string]*kafka.Generation{
		"another member":     {GroupID: generation.GroupID, ID: generation.ID, MemberID: "nobody"},
		"another generation": {GroupID: generation.GroupID, ID: generation.ID + 7, MemberID: generation.MemberID},
	} {
		if err := k.Heartbeat(t.Context(), stranger); err == nil {
			t.Errorf("%s is taken for a member", name)
		}
	}
}

func TestOrdersAreDelivered(t *testing.T) {
	k, _ := openSink(t)
	must(t, k.Submit(t.Context(), []pipeline.Order{{JobID: "a="}, {JobID: "b=", Replay: true}}))
	var got []string
	deliveries := make(chan Delivery)
	settled := make(chan int64, 100)
	go k.Orders(t.Context(), 0, -2, func(d Delivery) { deliveries <- d }, func(below int64) {
		select {
		case settled <- below:
		default:
		}
	})
	for range 2 {
		d := <-deliveries
		if d.Err != nil || d.Place == nil || d.Place.Offset != int64(len(got)) || time.Since(d.Place.Time) > time.Minute {
			t.Errorf("delivered: %+v", d)
		}
		got = append(got, d.JobID)
		if d.Replay != (d.JobID == "b=") {
			t.Errorf("job %s: replay %v", d.JobID, d.Replay)
		}
	}
	if below := <-settled; strings.Join(got, " ") != "a= b=" || below != 2 {
		t.Errorf("got %q, settled below %d", got, below)
	}
}

// FuzzDecodeOrder reads whatever is taken for an order once more from the form in
// which rebound submits orders.
func FuzzDecodeOrder(f *testing.F) {
	for _, seed := range []string{"abd123=", ` {"job_id":"abd123=","replay":true} `, `"abd123="`, "{", `{"job_id":5}`, "", "a b", "\xff", `{"job_id":"x","replay":null}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		o, err := decodeOrder(value)
		if err == nil && pipeline.CheckJobID(o.JobID) != nil {
			t.Errorf("%q is taken for job %q", value, o.JobID)
		}
		if submitted, _ := json.Marshal(o); err == nil {
			if again, err := decodeOrder(submitted); err != nil || again != o {
				t.Errorf("%q is %+v, submitted as %s, which is %+v: %v", value, o, submitted, again, err)
			}
		}
	})
}

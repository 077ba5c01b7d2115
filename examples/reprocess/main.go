// Reprocess mends failed users by rules and imports them again, until nothing is
// left that a rule can mend. It reads rebound's own settings:
//
//	FULLSTORY_API_KEY, FULLSTORY_BASE_URL, KAFKA_BROKERS, KAFKA_TOPIC, HTTP_TOKEN
//
// and runs until Ctrl-C.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kgo"

	"rebound/examples/reprocess/mend"
)

func main() {
	rulesFile := flag.String("rules", "", "a `FILE` that says how failures are mended (default: the example's rules.json)")
	serve := flag.String("serve", "http://127.0.0.1:8080", "where rebound serve is")
	group := flag.String("group", "rebound-reprocess", "the consumer group")
	flag.Parse()
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *rulesFile, *serve, *group); err != nil && ctx.Err() == nil {
		log.Fatalf("reprocess: %v", err)
	}
}

func run(ctx context.Context, rulesFile, serve, group string) error {
	rules := mend.ExampleRules()
	if rulesFile != "" {
		text, err := os.ReadFile(rulesFile)
		if err != nil {
			return err
		}
		if rules, err = mend.ParseRules(text); err != nil {
			return fmt.Errorf("%s: %w", rulesFile, err)
		}
	}
	topic := cmp.Or(os.Getenv("KAFKA_TOPIC"), "fullstory.user-import-errors")
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(cmp.Or(os.Getenv("KAFKA_BROKERS"), "localhost:9092"), ",")...),
		kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic, topic+".progress"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.DisableAutoCommit())
	if err != nil {
		return err
	}
	defer client.Close()
	m := mend.Mender{
		Rules:   rules,
		BaseURL: cmp.Or(os.Getenv("FULLSTORY_BASE_URL"), "https://api.fullstory.com"), APIKey: os.Getenv("FULLSTORY_API_KEY"),
		Serve: serve, Token: os.Getenv("HTTP_TOKEN"),
		Topic: topic, Report: report,
	}
	return m.Run(ctx, client)
}

// report prints what was done about a job. It names users by their place only.
func report(r mend.Report) {
	fmt.Printf("job %s\n", r.JobID)
	for _, code := range slices.Sorted(maps.Keys(r.Codes)) {
		fmt.Printf("  %-24s %6d failed, %6d mended\n", code, r.Codes[code], r.Mended[code])
	}
	const named = 20
	for i, f := range r.Left {
		if i == named {
			fmt.Printf("  left: %d more\n", len(r.Left)-named)
			break
		}
		fmt.Printf("  left: %s/%d %s\n", f.JobID, f.Index, f.Code)
	}
	if len(r.NewJobs) > 0 {
		fmt.Printf("  imported again as %s\n", strings.Join(r.NewJobs, " "))
	}
}

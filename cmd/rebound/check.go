package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"rebound/config"
	"rebound/pipeline"
	"rebound/sink"
)

func (p program) checkCommand() *cobra.Command {
	var serve bool
	var kind pipeline.Kind
	command := &cobra.Command{
		Use:   "check [JOB_ID…]",
		Short: "Try the configuration for real, changing nothing",
		Long: `Tries the configuration for real: the API key, the brokers, the topics and the
permissions. It prints a line a check and changes nothing. Given job ids, it
looks whether their failures can be read, too; with --serve, whether what serve
needs besides is there.`,
	}
	command.Flags().BoolVar(&serve, "serve", false, "try the jobs topic and the consumer group, too")
	kindFlag(command, &kind)
	settings := p.settings(command)
	command.RunE = func(command *cobra.Command, ids []string) error {
		for _, id := range ids {
			if err := pipeline.CheckJobID(id); err != nil {
				return usageError{err}
			}
		}
		c, err := settings(config.FullStory | config.Kafka)
		if err != nil {
			return err
		}
		return p.check(command.Context(), c, kind, ids, serve)
	}
	return command
}

// checkPatience is how long a check waits for brokers that do not answer.
const checkPatience = 5 * time.Second

func (p program) check(ctx context.Context, c *config.Config, kind pipeline.Kind, ids []string, serve bool) error {
	failed := false
	report := func(what, how string, err error) {
		if err != nil {
			failed = true
			fmt.Fprintf(p.stdout, "FAILED  %s: %v\n", what, err)
			return
		}
		fmt.Fprintf(p.stdout, "ok      %s: %s\n", what, how)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	c.KafkaRetryTimeout = min(c.KafkaRetryTimeout, checkPatience)

	api := newSource(c, kind, log)
	report("FullStory", c.FullStoryBaseURL+" takes the API key", api.Check(ctx))
	for _, id := range ids {
		how, err := api.CheckJob(ctx, id)
		report("job "+id, how, err)
	}
	options, err := kafkaOptions(ctx, c, kind, log)
	if err != nil {
		return err
	}
	if serve {
		options.Topics.Jobs = c.KafkaJobsTopic
	}
	sink.Check(ctx, options, c.KafkaGroupID, report)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if failed {
		fmt.Fprintln(p.stderr, "rebound: not everything works; see the lines that begin with FAILED")
		return failedError{}
	}
	return nil
}

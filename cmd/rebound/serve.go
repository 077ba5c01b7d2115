package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"rebound/config"
	"rebound/internal/fleet"
	"rebound/internal/status"
	"rebound/pipeline"
	"rebound/sink"
	"rebound/source"
)

func (p program) serveCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "serve",
		Short: "Publish jobs as they arrive on the jobs topic and over HTTP, until SIGTERM",
		Long: `Takes job ids from KAFKA_JOBS_TOPIC and publishes the failures of each job, until
SIGTERM. Start as many instances as you like: those of one KAFKA_GROUP_ID share
the jobs, and FULLSTORY_RATE_LIMIT, among themselves.

HTTP_ADDR has the status page, /metrics, /healthz, /readyz, and POST /jobs.`,
		Example: `  rebound serve
  echo abd123= | kcat -b localhost:9092 -P -t fullstory.user-import-errors.jobs
  curl -d '{"job_ids":["abd123="]}' http://127.0.0.1:8080/jobs`,
		Args: noArguments,
	}
	settings := p.settings(command)
	command.RunE = func(command *cobra.Command, _ []string) error {
		c, err := settings(config.FullStory | config.Kafka)
		if err != nil {
			return err
		}
		return p.serve(command.Context(), c)
	}
	return command
}

// name says which instance this is.
func name() string {
	host, err := os.Hostname()
	if err != nil {
		host = "rebound"
	}
	return fmt.Sprintf("%s, process %d", host, os.Getpid())
}

func (p program) serve(ctx context.Context, c *config.Config) error {
	if c.HTTPAddr == "" {
		return p.serveOn(ctx, c, nil)
	}
	listener, err := net.Listen("tcp", c.HTTPAddr)
	if err != nil {
		return fmt.Errorf("HTTP_ADDR: %w; set it to a free address, or empty for no HTTP", err)
	}
	defer listener.Close()
	return p.serveOn(ctx, c, listener)
}

// serveOn is an instance, whose HTTP side is on the listener; nil is none.
func (p program) serveOn(ctx context.Context, c *config.Config, listener net.Listener) error {
	log := p.log(c)
	options, err := kafkaOptions(ctx, c, log)
	if err != nil {
		return err
	}
	options.Topics.Jobs = c.KafkaJobsTopic
	if listener != nil {
		log.Info("status page", "url", "http://"+listener.Addr().String())
	}
	kafka, err := sink.Open(ctx, options)
	if err != nil {
		return err
	}
	defer kafka.Close()

	tracer, flush, err := p.tracer(ctx, log)
	if err != nil {
		return err
	}
	defer flush()
	metrics := status.NewMetrics()
	bucket := source.NewBucket(0, 0)
	api := sourceOptions(c, log)
	api.Bucket, api.Park = bucket, true
	api.Transport = metrics.Transport(source.NewTransport())
	client := source.New(api)

	p.limitMemory(c.JobConcurrency)
	instance := fleet.New(fleet.Options{
		Kafka: kafka, GroupID: c.KafkaGroupID,
		API: client, Bucket: bucket, PerSecond: c.FullStoryRateLimit, Burst: c.FullStoryRateBurst,
		Runner: &pipeline.Runner{
			Source: client, Sink: kafka, Limits: kafka.Limits(),
			CommitInterval: c.CommitInterval, RetryTimeout: c.KafkaRetryTimeout, Observe: metrics.Committed, Log: log,
		},
		Concurrency: c.JobConcurrency, JobTimeout: c.FullStoryJobTimeout, ShutdownTimeout: c.ShutdownTimeout,
		Ended: metrics.Ended, Tracer: tracer, Log: log,
	})
	metrics.Watch(instance, bucket.Waited)

	// Both end with the other.
	var both errgroup.Group
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	both.Go(func() error {
		defer stop()
		return instance.Run(ctx)
	})
	if listener != nil {
		server := status.New(status.Options{
			Fleet: instance, Kafka: kafka, Metrics: metrics,
			Token: c.HTTPToken.Reveal(), Loopback: c.HTTPIsLoopback(), Name: name(), Log: log,
		})
		both.Go(func() error {
			defer stop()
			return server.Serve(ctx, listener)
		})
	}
	if err := both.Wait(); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	log.Info("left the group; the other instances have the jobs")
	return nil
}

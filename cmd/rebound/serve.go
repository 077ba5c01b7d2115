package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	asked := ctx // to end, by a signal
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var both errgroup.Group // each ends with the other
	site := new(status.Site)
	if listener != nil {
		log.Info("status page", "url", "http://"+listener.Addr().String())
		both.Go(func() error {
			defer stop()
			return site.Serve(ctx, listener, log)
		})
	}
	both.Go(func() error {
		defer stop()
		return p.work(ctx, c, log, site)
	})
	err := both.Wait()
	if asked.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // before it had begun
	}
	return err
}

// work publishes jobs until ctx ends, and shows them on the site.
func (p program) work(ctx context.Context, c *config.Config, log *slog.Logger, site *status.Site) error {
	tracer, flush, err := p.tracer(ctx, log)
	if err != nil {
		return err
	}
	defer flush()
	options, err := kafkaOptions(ctx, c, pipeline.Users, log)
	if err != nil {
		return err
	}
	options.Topics.Jobs = c.KafkaJobsTopic
	kafka, err := sink.Open(ctx, options)
	if err != nil {
		return err
	}
	defer kafka.Close()

	metrics := status.NewMetrics()
	bucket := source.NewBucket(0, 0)
	api := sourceOptions(c, log)
	api.Bucket, api.Park = bucket, true
	api.Transport = metrics.Transport(source.NewTransport())
	client := source.New(api)

	p.limitMemory(c.JobConcurrency)
	publisher := func(kind pipeline.Kind, kafka *sink.Kafka) fleet.Publisher {
		client := client.Of(kind)
		return fleet.Publisher{API: client, Kafka: kafka, Runner: &pipeline.Runner{
			Source: client, Sink: kafka, Form: form(c, kind), Limits: kafka.Limits(),
			CommitInterval: c.CommitInterval, RetryTimeout: c.KafkaRetryTimeout, Observe: metrics.Committed, Log: log,
		}}
	}
	// Those of events are opened when there are any: not everybody imports them.
	var server *status.Server
	var events *sink.Kafka
	defer func() {
		if events != nil {
			events.Close()
		}
	}()
	openEvents := func(opening context.Context, createTopics bool) (*fleet.Publisher, error) {
		settings := *c
		settings.KafkaCreateTopics = c.KafkaCreateTopics && createTopics
		opened, err := openKafka(opening, &settings, pipeline.Events, log)
		if err != nil {
			return nil, err
		}
		events = opened
		server.Follow(ctx, events)
		publisher := publisher(pipeline.Events, events)
		return &publisher, nil
	}
	instance := fleet.New(fleet.Options{
		Users: publisher(pipeline.Users, kafka), OpenEvents: openEvents, GroupID: c.KafkaGroupID,
		Bucket: bucket, PerSecond: c.FullStoryRateLimit, Burst: c.FullStoryRateBurst,
		Concurrency: c.JobConcurrency, JobTimeout: c.FullStoryJobTimeout, ShutdownTimeout: c.ShutdownTimeout,
		Ended: metrics.Ended, Tracer: tracer, Log: log,
	})
	metrics.Watch(instance, bucket.Waited)
	server = status.New(status.Options{
		Fleet: instance, Kafka: kafka, Metrics: metrics,
		Token: c.HTTPToken.Reveal(), Loopback: c.HTTPIsLoopback(), Name: name(), Log: log,
	})
	site.Show(ctx, server)
	if err := instance.PrepareEvents(ctx); err != nil {
		log.Warn("jobs of events cannot be published yet; it is tried again when one comes", "error", err)
	}
	if err := instance.Run(ctx); err != nil {
		return err
	}
	log.Info("left the group; the other instances have the jobs")
	return nil
}

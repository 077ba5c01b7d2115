package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/aws_msk_iam_v2"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"rebound/config"
	"rebound/pipeline"
	"rebound/sink"
	"rebound/source"
)

func (p program) runCommand() *cobra.Command {
	var jobsFile, sinkName string
	var kind pipeline.Kind
	var replay bool
	command := &cobra.Command{
		Use:   "run JOB_ID…",
		Short: "Publish the failures of import jobs, then exit",
		Long: `Publishes every failed user of the given import jobs to KAFKA_TOPIC and exits;
with --kind events, every failed event to KAFKA_EVENTS_TOPIC.

A job that was published to the end is skipped. One that was stopped or failed
goes on where it stopped: running the same command again is always safe.`,
		Example: `  rebound run abd123=
  rebound run --jobs-file jobs.txt
  rebound run --replay abd123=              # publish it again, from page one
  rebound run --kind events ev456=          # a job of POST /v2/events/batch
  rebound run --sink stdout abd123= | jq .  # a dry run, no broker needed`,
	}
	settings := p.settings(command)
	kindFlag(command, &kind)
	command.Flags().StringVar(&jobsFile, "jobs-file", "", "read job ids from `FILE`, one a line, # comments; - is standard input")
	command.Flags().BoolVar(&replay, "replay", false, "publish the jobs again from page one, as a new run")
	command.Flags().StringVar(&sinkName, "sink", "kafka", "`kafka`, or stdout: print the messages instead of publishing them")
	command.RunE = func(command *cobra.Command, ids []string) error {
		jobs, err := p.jobIDs(ids, jobsFile)
		if err != nil {
			return err
		}
		need := config.FullStory | config.Kafka
		switch sinkName {
		case "kafka":
		case "stdout":
			need = config.FullStory
		default:
			return usageError{fmt.Errorf("--sink %q: write kafka or stdout", sinkName)}
		}
		c, err := settings(need)
		if err != nil {
			return err
		}
		return p.runJobs(command.Context(), c, kind, jobs, replay, sinkName == "stdout")
	}
	return command
}

// kindFlag lets a command take jobs of either kind.
func kindFlag(command *cobra.Command, kind *pipeline.Kind) {
	command.Flags().Func("kind", "`KIND` of the import jobs: users or events (default users)", func(text string) (err error) {
		*kind, err = pipeline.ParseKind(text)
		return err
	})
}

// jobIDs gathers the job ids of the command line and of the file, each once.
func (p program) jobIDs(ids []string, file string) ([]string, error) {
	switch file {
	case "":
	case "-":
		more, err := readJobIDs(p.stdin)
		if err != nil {
			return nil, usageError{fmt.Errorf("--jobs-file -: %w", err)}
		}
		ids = append(ids, more...)
	default:
		f, err := os.Open(file)
		if err != nil {
			return nil, usageError{fmt.Errorf("--jobs-file: %w", err)}
		}
		defer f.Close()
		more, err := readJobIDs(f)
		if err != nil {
			return nil, usageError{fmt.Errorf("--jobs-file %s: %w", file, err)}
		}
		ids = append(ids, more...)
	}
	if len(ids) == 0 && file == "" {
		return nil, usageError{errors.New("no job id given")}
	}
	var unique []string
	seen := make(map[string]bool)
	for _, id := range ids {
		if err := pipeline.CheckJobID(id); err != nil {
			return nil, usageError{err}
		}
		if !seen[id] {
			seen[id] = true
			unique = append(unique, id)
		}
	}
	return unique, nil
}

// readJobIDs reads one job id a line. What follows a # that begins a line or
// comes after white space is a comment.
func readJobIDs(r io.Reader) ([]string, error) {
	var ids []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimPrefix(lines.Text(), "\uFEFF")
		if before, _, found := strings.Cut(" "+line, " #"); found {
			line = before
		}
		if id := strings.TrimSpace(line); id != "" {
			ids = append(ids, id)
		}
	}
	return ids, lines.Err()
}

// runJobs publishes the jobs side by side and sums up how each ended.
func (p program) runJobs(ctx context.Context, c *config.Config, kind pipeline.Kind, ids []string, replay, dryRun bool) error {
	display := newDisplay(p.stderr, len(ids))
	p.stderr = display.writer()
	log := p.log(c)

	runner := &pipeline.Runner{
		Source:          newSource(c, kind, log),
		Form:            form(c, kind),
		CommitInterval:  c.CommitInterval,
		RetryTimeout:    c.KafkaRetryTimeout,
		ShutdownTimeout: c.ShutdownTimeout,
		Report:          display.report,
		Log:             log,
	}
	if dryRun {
		lines := sink.NewLines(p.stdout, topics(c, kind))
		runner.Sink, runner.Limits = lines, lines.Limits()
	} else {
		kafka, err := openKafka(ctx, c, kind, log)
		if err != nil {
			return err
		}
		defer kafka.Close()
		runner.Sink, runner.Limits = kafka, kafka.Limits()
	}

	defer context.AfterFunc(ctx, func() {
		fmt.Fprintln(p.stderr, "stopping: what is complete is committed; another signal leaves at once, and nothing is lost then either")
	})()

	tracer, flush, err := p.tracer(ctx, log)
	if err != nil {
		return err
	}
	defer flush()
	p.limitMemory(min(len(ids), c.JobConcurrency))
	outcomes := make([]outcome, len(ids))
	display.start(ctx, log)
	var jobs errgroup.Group
	jobs.SetLimit(c.JobConcurrency)
	for i, id := range ids {
		outcomes[i].id = id
		jobs.Go(func() error {
			if ctx.Err() != nil {
				outcomes[i].err = ctx.Err()
				return nil
			}
			ctx, span := tracer.Start(ctx, "job", trace.WithAttributes(attribute.String("rebound.job", id)))
			defer span.End()
			result, err := runner.Run(ctx, pipeline.Order{JobID: id, Kind: kind, Replay: replay})
			outcomes[i].Outcome, outcomes[i].err = result, err
			display.end(id)
			logOutcome(ctx, log, &outcomes[i])
			return nil
		})
	}
	jobs.Wait()
	display.stop()
	logMemory(log)

	summary := p.stdout
	if dryRun {
		summary = p.stderr
	}
	return p.sumUp(ctx, summary, outcomes)
}

// limitMemory has the garbage collector aim at what the process and so many jobs
// in flight need, rather than at twice that.
func (p program) limitMemory(jobs int) {
	const process, job = 40 << 20, 4 << 20
	if limit, _ := p.lookup("GOMEMLIMIT"); limit == "" {
		debug.SetMemoryLimit(process + int64(jobs)*job)
	}
}

// logMemory tells, at debug level, what memory the process has used.
func logMemory(log *slog.Logger) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	log.Debug("memory", "allocations", m.Mallocs, "allocated_bytes", m.TotalAlloc, "from_system_bytes", m.Sys, "collections", m.NumGC)
}

// outcome is how a job ended.
type outcome struct {
	id string
	pipeline.Outcome
	err error
}

func (o *outcome) state(ctx context.Context) string {
	switch {
	case o.Skipped:
		return "skipped"
	case o.err == nil:
		return "done"
	case errors.As(o.err, new(*pipeline.IncompleteError)):
		return "incomplete"
	case ctx.Err() != nil && errors.Is(o.err, context.Canceled):
		return "stopped"
	}
	return "failed"
}

func logOutcome(ctx context.Context, log *slog.Logger, o *outcome) {
	log = log.With("job", o.id, "run", o.Progress.Run)
	counts := o.Progress.Counts()
	switch o.state(ctx) {
	case "skipped":
		log.Info("the job was published to the end before; skipped (--replay publishes it again)", counts)
	case "done":
		log.Info("the job is done", counts)
	case "stopped":
		log.Info("the job was stopped", counts)
	default:
		log.Error("the job ended early", counts, "error", o.err)
	}
}

// sumUp prints a line a job, then what is to be done about those that are not
// done.
func (p program) sumUp(ctx context.Context, w io.Writer, outcomes []outcome) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "JOB\tSTATE\tRUN\tPUBLISHED\tDEAD-LETTERED\tTOTAL")
	var stopped, unfinished int
	for i := range outcomes {
		o := &outcomes[i]
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\n", o.id, o.state(ctx), o.Progress.Run,
			o.Progress.Published, o.Progress.DeadLettered, o.Progress.TotalRecords)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("standard output: %w", err)
	}
	for i := range outcomes {
		o := &outcomes[i]
		switch o.state(ctx) {
		case "failed", "incomplete":
			unfinished++
			fmt.Fprintf(p.stderr, "rebound: %v\n", o.err)
		case "stopped":
			stopped++
		}
	}
	if stopped > 0 {
		fmt.Fprintf(p.stderr, "rebound: stopped with %s to go; run the same command again, without --replay, to go on from there\n", plural(stopped, "job"))
	}
	if unfinished > 0 {
		return failedError{}
	}
	return ctx.Err()
}

func newSource(c *config.Config, kind pipeline.Kind, log *slog.Logger) *source.API {
	options := sourceOptions(c, log)
	options.Kind = kind
	options.Bucket = source.NewBucket(c.FullStoryRateLimit, c.FullStoryRateBurst)
	return source.New(options)
}

func sourceOptions(c *config.Config, log *slog.Logger) source.Options {
	return source.Options{
		BaseURL:        c.FullStoryBaseURL,
		APIKey:         c.FullStoryAPIKey.Reveal(),
		RequestTimeout: c.FullStoryRequestTimeout,
		RetryTimeout:   c.FullStoryRetryTimeout,
		JobTimeout:     c.FullStoryJobTimeout,
		Log:            log,
	}
}

// form is that of the messages that the settings ask for.
func form(c *config.Config, kind pipeline.Kind) pipeline.Form {
	// Their pointers were checked with the other settings.
	fields, _ := pipeline.NewFields(c.FieldsDrop, c.FieldsHash, []byte(c.FieldsHashKey.Reveal()))
	return pipeline.Form{Kind: kind, Fields: fields, CloudEvents: c.KafkaCloudEvents}
}

func topics(c *config.Config, kind pipeline.Kind) sink.Topics {
	if kind == pipeline.Events {
		events := c.KafkaEventsTopic
		return sink.Topics{Failures: events, DeadLetters: events + ".dead-letter", Progress: events + ".progress"}
	}
	return sink.Topics{Failures: c.KafkaTopic, DeadLetters: c.KafkaDeadLetterTopic, Progress: c.KafkaProgressTopic}
}

func openKafka(ctx context.Context, c *config.Config, kind pipeline.Kind, log *slog.Logger) (*sink.Kafka, error) {
	options, err := kafkaOptions(ctx, c, kind, log)
	if err != nil {
		return nil, err
	}
	return sink.Open(ctx, options)
}

func kafkaOptions(ctx context.Context, c *config.Config, kind pipeline.Kind, log *slog.Logger) (sink.Options, error) {
	options := sink.Options{
		Brokers:      c.KafkaBrokers,
		Topics:       topics(c, kind),
		ExactlyOnce:  c.KafkaDelivery == config.ExactlyOnce,
		CreateTopics: c.KafkaCreateTopics,
		Partitions:   c.KafkaTopicPartitions,
		Replicas:     c.KafkaReplicationFactor,
		RetryTimeout: c.KafkaRetryTimeout,
		Log:          log,
	}
	var err error
	if err = options.Compression.UnmarshalText([]byte(c.KafkaCompression)); err != nil {
		return options, err
	}
	if options.TLS, err = c.TLS(); err != nil {
		return options, err
	}
	options.SASL, err = mechanism(ctx, c)
	return options, err
}

// mechanism returns how to authenticate with the brokers; nil for not at all.
func mechanism(ctx context.Context, c *config.Config) (sasl.Mechanism, error) {
	username, password := c.KafkaSASLUsername, c.KafkaSASLPassword.Reveal()
	switch c.KafkaSASLMechanism {
	case "plain":
		return plain.Mechanism{Username: username, Password: password}, nil
	case "scram-sha-256":
		return scram.Mechanism(scram.SHA256, username, password)
	case "scram-sha-512":
		return scram.Mechanism(scram.SHA512, username, password)
	case "aws-msk-iam":
		account, err := awsconfig.LoadDefaultConfig(ctx)
		if err != nil {
			return nil, fmt.Errorf("KAFKA_SASL_MECHANISM=aws-msk-iam: %w", err)
		}
		if account.Region == "" {
			return nil, errors.New("KAFKA_SASL_MECHANISM=aws-msk-iam: set AWS_REGION to the region of the cluster")
		}
		return aws_msk_iam_v2.NewMechanism(account), nil
	}
	return nil, nil
}

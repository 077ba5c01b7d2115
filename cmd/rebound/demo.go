package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"rebound/config"
	"rebound/internal/broker"
	"rebound/internal/simulator"
	"rebound/pipeline"
	"rebound/sink"
	"rebound/source"
)

func (p program) demoCommand() *cobra.Command {
	var keep bool
	command := &cobra.Command{
		Use:   "demo",
		Short: "See it work on this machine, with nothing installed",
		Long: `Runs everything on this machine: an embedded Kafka broker, a simulated FullStory
API that goes wrong now and then, and "rebound serve" with its status page, which
is given a few jobs. When all are through it reads everything back and compares it
with what FullStory has.`,
		Args: noArguments,
	}
	command.Flags().BoolVar(&keep, "keep", false, "leave everything up afterwards, to look around, until Ctrl-C")
	command.RunE = func(command *cobra.Command, _ []string) error { return p.demo(command.Context(), keep) }
	return command
}

// demoJobs are the jobs of the demo.
var demoJobs = []simulator.Conjured{
	{ID: "bWF5LTIwMjY=", Failures: 20_000},
	{ID: "Y3JtL3N5bmM+", Failures: 3_000, PageSize: 250},
	{ID: "bmlnaHRseQ==", Failures: 345, Processing: 2 * time.Second},
}

// demoSettings are the settings of the demo, besides the addresses.
var demoSettings = map[string]string{
	"FULLSTORY_API_KEY":    "demo",
	"FULLSTORY_RATE_LIMIT": "20",
	"FULLSTORY_RATE_BURST": "20",
	"LOG_LEVEL":            "error",
	"LOG_FORMAT":           "text",
}

func (p program) demo(ctx context.Context, keep bool) error {
	dir, err := os.MkdirTemp("", "rebound-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	const usualPort = 9092
	kafka, err := broker.Start(usualPort, dir)
	if err != nil {
		return err
	}
	defer kafka.Close()
	brokers := net.JoinHostPort("127.0.0.1", strconv.Itoa(broker.Port(kafka)))
	note := ""
	if broker.Port(kafka) != usualPort {
		note = fmt.Sprintf(" (port %d is taken)", usualPort)
	}
	fmt.Fprintf(p.stdout, "Kafka broker, embedded:    %s%s\n", brokers, note)

	faults, err := simulator.ParseFaults("all=0.03,garbage=0.001,repeated=0")
	if err != nil {
		return err
	}
	api := simulator.New(simulator.Options{Faults: faults, Seed: 2026})
	for _, job := range demoJobs {
		api.Conjure(job)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	go serveHTTP(serving, listener, api)
	baseURL := "http://" + listener.Addr().String()
	fmt.Fprintf(p.stdout, "FullStory API, simulated:  %s, with %s\n", baseURL, faults)

	c, err := config.Load(ctx, func(variable string) (string, bool) {
		switch variable {
		case "KAFKA_BROKERS":
			return brokers, true
		case "FULLSTORY_BASE_URL":
			return baseURL, true
		}
		value, ok := demoSettings[variable]
		return value, ok
	}, config.FullStory|config.Kafka)
	if err != nil {
		return err
	}
	listener, err = listenOn(usualAddr)
	if err != nil {
		return err
	}
	note = ""
	if listener.Addr().String() != usualAddr {
		note = fmt.Sprintf(" (%s is taken)", usualAddr)
	}
	page := "http://" + listener.Addr().String()
	fmt.Fprintf(p.stdout, "rebound serve, its page:   %s%s\n\n", page, note)
	instance := make(chan error, 1)
	go func() {
		defer close(instance)
		instance <- p.serveOn(serving, c, listener)
	}()

	var ids []string
	for _, job := range demoJobs {
		ids = append(ids, job.ID)
	}
	err = p.watchDemo(ctx, c, page, ids, instance)
	if err == nil {
		err = p.showDemo(ctx, c, ids)
	}
	if err == nil {
		err = p.closeLoop(ctx, c, page)
	}
	if err == nil && keep {
		fmt.Fprintf(p.stdout, `
Everything stays up until Ctrl-C. Look around:
  %[7]s in a browser; curl -s %[7]s/jobs; curl -s %[7]s/metrics
  curl -d '{"job_ids":["%[5]s"],"replay":true}' %[7]s/jobs
  kcat -b %[1]s -C -t %[2]s -o beginning -e -X isolation.level=read_committed -f '%%k %%h %%s\n' | head
  kcat -b %[1]s -C -t %[3]s -o beginning -e -f '%%k %%s\n'
  curl -s -H 'Authorization: Basic demo' %[4]s/v2/users/batch/%[5]s
  FULLSTORY_API_KEY=demo FULLSTORY_BASE_URL=%[4]s KAFKA_BROKERS=%[1]s rebound verify %[6]s
`, brokers, c.KafkaTopic, c.KafkaProgressTopic, baseURL, demoJobs[0].ID, demoJobs[0].ID, page)
		<-ctx.Done()
		err = ctx.Err()
	}
	stopServing()
	return cmp.Or(err, <-instance)
}

// usualAddr is where the demo's page is, unless something else is there.
const usualAddr = "127.0.0.1:8080"

func listenOn(usual string) (net.Listener, error) {
	listener, err := net.Listen("tcp", usual)
	if errors.Is(err, syscall.EADDRINUSE) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
	}
	return listener, err
}

// watchDemo submits the jobs over HTTP, as anybody would, and shows how they get
// on until all have ended or the instance has.
func (p program) watchDemo(ctx context.Context, c *config.Config, page string, ids []string, instance <-chan error) error {
	body, err := json.Marshal(map[string]any{"job_ids": ids})
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "$ curl -d '%s' %s/jobs\n", body, page)
	if err := submit(ctx, page, body); err != nil {
		return err
	}
	kafka, err := openKafka(ctx, c, pipeline.Users, p.log(c))
	if err != nil {
		return err
	}
	defer kafka.Close()

	display := newDisplay(p.stderr, len(ids))
	display.start(ctx, slog.New(slog.DiscardHandler))
	outcomes, err := awaitEnds(ctx, kafka, ids, display, instance)
	display.stop()
	if err != nil {
		return err
	}
	return p.sumUp(ctx, p.stdout, outcomes)
}

// awaitEnds shows how jobs get on until all have ended or the instance has.
func awaitEnds(ctx context.Context, kafka *sink.Kafka, ids []string, display *display, instance <-chan error) ([]outcome, error) {
	outcomes := make([]outcome, len(ids))
	for ended := 0; ended < len(ids); {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case err := <-instance:
			return nil, fmt.Errorf("the instance has ended: %w", err)
		case <-time.After(lineInterval):
		}
		for i, id := range ids {
			progress, err := kafka.Progress(ctx, id)
			if err != nil {
				return nil, err
			}
			if outcomes[i].id != "" || progress.JobID == "" {
				continue
			}
			display.report(progress)
			if progress.State == pipeline.Running {
				continue
			}
			outcomes[i] = outcome{id: id, Outcome: pipeline.Outcome{Progress: progress}}
			if progress.State != pipeline.Done {
				outcomes[i].err = errors.New(progress.Reason)
			}
			display.end(id)
			ended++
		}
	}
	return outcomes, nil
}

// submit posts jobs to an instance that may not be up yet.
func submit(ctx context.Context, page string, body []byte) error {
	for began := time.Now(); ; time.Sleep(lineInterval) {
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, page+"/jobs", bytes.NewReader(body))
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusAccepted {
				return nil
			}
			err = fmt.Errorf("%s/jobs answers %s", page, response.Status)
		}
		if ctx.Err() != nil || time.Since(began) > 20*time.Second {
			return err
		}
	}
}

// showDemo reads everything back: a message, what there is of each code, and
// whether it is what FullStory has.
func (p program) showDemo(ctx context.Context, c *config.Config, ids []string) error {
	log := p.log(c)
	kafka, err := openKafka(ctx, c, pipeline.Users, log)
	if err != nil {
		return err
	}
	defer kafka.Close()

	codes := make(map[string]int)
	var example *pipeline.Message
	for _, id := range ids {
		_, committed, err := kafka.Committed(ctx, id)
		if err != nil {
			return err
		}
		err = committed.Rest(ctx, func(m *pipeline.Message) {
			for _, h := range m.Headers {
				if h.Name == "code" || h.Name == "reason" {
					codes[h.Name+" "+string(h.Value)]++
				}
			}
			if example == nil && m.Topic == pipeline.Failures && isPlain(m.Value) {
				clone := *m
				example = &clone
			}
		})
		if err != nil {
			return err
		}
	}
	fmt.Fprintln(p.stdout, "\nMessages read back, by code; dead letters by reason:")
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, code := range slices.Sorted(maps.Keys(codes)) {
		kind, name, _ := strings.Cut(code, " ")
		fmt.Fprintf(table, "%d\t %s\t %s\t\n", codes[code], kind, name)
	}
	table.Flush()
	if example != nil {
		fmt.Fprintf(p.stdout, "\nOne whole message:\n  topic    %s\n  key      %s\n", c.KafkaTopic, example.Key)
		for _, h := range example.Headers {
			fmt.Fprintf(p.stdout, "  header   %s: %s\n", h.Name, h.Value)
		}
		fmt.Fprintf(p.stdout, "  value    %s\n", example.Value)
	}
	return p.proveDemo(ctx, kafka, newSource(c, pipeline.Users, log), ids)
}

// isPlain tells whether any terminal shows the text as it is.
func isPlain(text []byte) bool {
	for _, c := range text {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// proveDemo verifies the jobs.
func (p program) proveDemo(ctx context.Context, kafka *sink.Kafka, api *source.API, ids []string) error {
	fmt.Fprintf(p.stdout, "\n$ rebound verify %s\n", strings.Join(ids, " "))
	for _, id := range ids {
		ok, err := p.verifyJob(ctx, api, kafka, pipeline.Form{}, id)
		if err != nil {
			return err
		}
		if !ok {
			return failedError{}
		}
	}
	fmt.Fprintln(p.stdout, "\nEvery failure that FullStory has is in Kafka, once.")
	return nil
}

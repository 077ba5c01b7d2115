package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"rebound/internal/simulator"
)

func (p program) simulateCommand() *cobra.Command {
	var options simulator.Options
	var address, faults string
	var jobs, eventJobs []string
	var plain bool
	command := &cobra.Command{
		Use:   "simulate",
		Short: "Run a simulated FullStory API, for trying things out and for load tests",
		Long: `Runs a simulated FullStory API until it is stopped. It takes imports as FullStory
does (POST /v2/users/batch, POST /v2/events/batch), and has the jobs given by
--job and --events-job, whose failures it makes up from the seed as they are asked
for.

GET /_simulator/requests lists what arrived when;
GET /_simulator/jobs/ID/failures lists the failures of a job, as they really are.`,
		Example: `  rebound simulate --job abd123=:12345
  rebound simulate --job big=:1000000:5000 --fault all=0.02 --seed 7
  rebound simulate --fault 429=0.1,cut=0.05 --latency 20ms`,
		Args: noArguments,
	}
	flags := command.Flags()
	flags.StringVar(&address, "addr", "127.0.0.1:8081", "`ADDRESS` to listen on")
	flags.StringVar(&options.APIKey, "api-key", "", "the only API key that is taken; any if empty")
	flags.StringArrayVar(&jobs, "job", nil, "a job as `ID:FAILURES[:PAGE_SIZE]`; may be given several times")
	flags.StringArrayVar(&eventJobs, "events-job", nil, "the same for a job of events")
	flags.IntVar(&options.PageSize, "page-size", 1000, "results a page")
	flags.Uint64Var(&options.Seed, "seed", 1, "makes jobs, page tokens and faults what they are")
	flags.Float64Var(&options.RateLimit, "rate-limit", 0, "requests a second that are answered, the others get 429; 0 answers all")
	flags.IntVar(&options.RateBurst, "rate-burst", 10, "requests that are answered at once after a pause")
	flags.DurationVar(&options.Latency, "latency", 0, "before each answer")
	flags.DurationVar(&options.Processing, "processing", 0, "how long an import, or a job of --job, is processed at first")
	flags.BoolVar(&plain, "plain", false, "give all failures of --job the same simple form, 530 bytes each")
	flags.StringVar(&faults, "fault", "", "faults and their `PROBABILITIES`: all=0.02, or a list of latency, 429, 500, 503, cut, truncated, slow-body, html, empty, repeated, garbage")
	command.RunE = func(command *cobra.Command, _ []string) error {
		var err error
		if options.Faults, err = simulator.ParseFaults(faults); err != nil {
			return usageError{fmt.Errorf("--fault: %w", err)}
		}
		if options.PageSize < 1 {
			return usageError{fmt.Errorf("--page-size: %d is less than 1", options.PageSize)}
		}
		api := simulator.New(options)
		for kind, texts := range map[simulator.Kind][]string{simulator.Users: jobs, simulator.Events: eventJobs} {
			for _, text := range texts {
				job, err := simulator.ParseConjured(text)
				if err != nil {
					return usageError{fmt.Errorf("--job: %w", err)}
				}
				job.Kind, job.Plain, job.Processing = kind, plain, options.Processing
				api.Conjure(job)
			}
		}
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("--addr: %w", err)
		}
		fmt.Fprintf(p.stdout, "the simulated FullStory API is at http://%s\n", listener.Addr())
		return serveHTTP(command.Context(), listener, api)
	}
	return command
}

// serveHTTP serves until the context ends.
func serveHTTP(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err := server.Serve(listener)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

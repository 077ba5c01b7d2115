// Rebound streams every user that bounced off a FullStory batch user import into
// Kafka. See README.md, or run "rebound help".
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"rebound/config"
)

// Exit statuses.
const (
	exitFailed = 1 // a job failed or is incomplete
	exitUsage  = 2 // wrong usage or configuration
)

func main() {
	withoutCore()
	os.Exit(program{
		lookup: os.LookupEnv,
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
	}.run(os.Args[1:]))
}

// program is what a command works with.
type program struct {
	lookup func(variable string) (string, bool)
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

// usageError is a mistake in the command line.
type usageError struct{ error }

// failedError ends the program after everything was said.
type failedError struct{}

func (failedError) Error() string { return "a job failed" }

// run executes a command line and returns the exit status.
func (p program) run(arguments []string) int {
	// A closed standard output is an error to report, not a reason to die.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := untilSignal()
	defer stop()

	root := p.rootCommand()
	root.SetArgs(arguments)
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	command, err := root.ExecuteContextC(ctx)

	var stopped signalError
	var wrong *config.Error
	var usage usageError
	switch {
	case err == nil && command.Name() == "serve":
		return 0 // a signal is how it is meant to end
	case errors.As(context.Cause(ctx), &stopped):
		if err != nil && !errors.Is(err, context.Canceled) && !errors.As(err, new(failedError)) {
			fmt.Fprintf(p.stderr, "rebound: %v\n", err)
		}
		return 128 + int(stopped.signal)
	case err == nil:
		return 0
	case errors.As(err, new(failedError)):
		return exitFailed
	case errors.As(err, &wrong):
		fmt.Fprintf(p.stderr, "rebound: %v\nEach is an environment variable, or a flag of \"%s\".\n", wrong, command.CommandPath())
		return exitUsage
	case errors.As(err, &usage):
		fmt.Fprintf(p.stderr, "rebound: %v\nSee \"%s --help\".\n", usage, command.CommandPath())
		return exitUsage
	default:
		fmt.Fprintf(p.stderr, "rebound: %v\n", err)
		return exitFailed
	}
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ signal syscall.Signal }

func (e signalError) Error() string { return "stopped by " + e.signal.String() }

// untilSignal returns a context that SIGINT or SIGTERM ends. A second signal
// ends the process at once.
func untilSignal() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		first := <-signals
		cancel(signalError{first.(syscall.Signal)})
		second := <-signals
		os.Exit(128 + int(second.(syscall.Signal)))
	}()
	return ctx, func() { signal.Stop(signals) }
}

func (p program) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "rebound",
		Short: "Streams every user that bounced off a FullStory batch user import into Kafka",
		Long: `Rebound streams every user that bounced off a FullStory batch user import into
Kafka: it pages through an import job's errors and publishes each failed user,
with the reason, as one message.

To see it work on this machine, with nothing installed:

  rebound demo

To publish the failures of a job:

  export FULLSTORY_API_KEY=… KAFKA_BROKERS=localhost:9092
  rebound check
  rebound run JOB_ID

Settings are environment variables; each is also a flag of the commands that use
it. See "rebound run --help".`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("there is no command %q", args[0])}
			}
			return nil
		},
		RunE: func(command *cobra.Command, _ []string) error { return command.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(p.runCommand(), p.serveCommand(), p.verifyCommand(), p.jobsCommand(), p.checkCommand(), p.demoCommand(), p.simulateCommand(), p.versionCommand())
	return root
}

// noArguments refuses arguments, as a mistake in usage.
func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("no arguments are taken, got %q", args[0])}
	}
	return nil
}

// settings makes each setting a flag of the command. The function it returns
// reads the settings once the flags are parsed.
func (p program) settings(command *cobra.Command) func(need config.Need) (*config.Config, error) {
	type setting struct{ flag, value string }
	flags := make(map[string]*setting)
	for _, s := range config.Settings() {
		if s.Flag == "" {
			continue
		}
		usage := fmt.Sprintf("%s [%s]", s.Doc, s.Variable)
		if s.Default != "" && s.Default != "required" {
			usage = fmt.Sprintf("%s [%s, default %s]", s.Doc, s.Variable, s.Default)
		}
		flags[s.Variable] = &setting{flag: s.Flag}
		command.Flags().StringVar(&flags[s.Variable].value, s.Flag, "", usage)
		command.Flags().Lookup(s.Flag).Annotations = map[string][]string{settingAnnotation: nil}
	}
	command.SetUsageTemplate(settingsUsage)
	return func(need config.Need) (*config.Config, error) {
		return config.Load(command.Context(), func(variable string) (string, bool) {
			if s := flags[variable]; s != nil && command.Flags().Changed(s.flag) {
				return s.value, true
			}
			return p.lookup(variable)
		}, need)
	}
}

// settingAnnotation marks the flags that stand for settings.
const settingAnnotation = "setting"

// settingsUsage is cobra's template for a command's help, short of what rebound
// does not use.
const settingsUsage = `Usage:
  {{.UseLine}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}

Flags:
{{.LocalFlags.FlagUsagesWrapped 100 | trimTrailingWhitespaces}}

Secrets have no flags: set FULLSTORY_API_KEY and KAFKA_SASL_PASSWORD in the
environment, or name files that hold them.
`

// log returns the logger that the settings ask for.
func (p program) log(c *config.Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.Level()}
	if c.LogFormat == "text" || c.LogFormat == "" && isTerminal(p.stderr) {
		return slog.New(slog.NewTextHandler(p.stderr, options))
	}
	return slog.New(slog.NewJSONHandler(p.stderr, options))
}

func isTerminal(w io.Writer) bool {
	if t, ok := w.(*statusLine); ok {
		w = t.out
	}
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// plural returns "1 job" or "2 jobs".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, strings.TrimSuffix(noun, "s"))
}

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"rebound/config"
	"rebound/pipeline"
)

func (p program) jobsCommand() *cobra.Command {
	var asJSON bool
	var state, since, until string
	var kind pipeline.Kind
	command := &cobra.Command{
		Use:   "jobs",
		Short: "List the jobs that the progress topic knows",
		Long: `Lists the jobs that the progress topic knows, the one that moved last at the end:
a table on a terminal, one job id a line elsewhere.`,
		Example: `  rebound jobs
  rebound jobs --state incomplete --since 36h
  rebound jobs --since 2026-01-01 | rebound run --replay --jobs-file -   # a backfill`,
		Args: noArguments,
	}
	settings := p.settings(command)
	kindFlag(command, &kind)
	command.Flags().BoolVar(&asJSON, "json", false, "one progress record a line, as it stands in the topic")
	command.Flags().StringVar(&state, "state", "", "only jobs in `STATE`: running, done, incomplete or failed")
	command.Flags().StringVar(&since, "since", "", "only jobs that moved at `TIME` or later: a date (UTC), RFC 3339, or an age such as 36h")
	command.Flags().StringVar(&until, "until", "", "only jobs that moved at `TIME` or earlier; a date includes its whole day")
	command.RunE = func(command *cobra.Command, _ []string) error {
		filter, err := newJobFilter(state, since, until, time.Now())
		if err != nil {
			return usageError{err}
		}
		c, err := settings(config.Kafka)
		if err != nil {
			return err
		}
		return p.listJobs(command.Context(), c, kind, filter, asJSON)
	}
	return command
}

// jobFilter says which jobs are listed.
type jobFilter struct {
	state        pipeline.State
	since, until time.Time // zero: no bound
}

func newJobFilter(state, since, until string, now time.Time) (jobFilter, error) {
	f := jobFilter{state: pipeline.State(state)}
	switch f.state {
	case "", pipeline.Running, pipeline.Done, pipeline.Incomplete, pipeline.Failed:
	default:
		return f, fmt.Errorf("--state %q: write running, done, incomplete or failed", state)
	}
	var err error
	if f.since, _, err = parseTime(since, now); err != nil {
		return f, fmt.Errorf("--since %w", err)
	}
	var wholeDay bool
	if f.until, wholeDay, err = parseTime(until, now); err != nil {
		return f, fmt.Errorf("--until %w", err)
	}
	if wholeDay {
		f.until = f.until.AddDate(0, 0, 1).Add(-1)
	}
	return f, nil
}

// parseTime reads a date, a time or an age; wholeDay tells that it is a date.
func parseTime(text string, now time.Time) (at time.Time, wholeDay bool, err error) {
	if text == "" {
		return time.Time{}, false, nil
	}
	if at, err = time.Parse(time.DateOnly, text); err == nil {
		return at, true, nil
	}
	if at, err = time.Parse(time.RFC3339, text); err == nil {
		return at, false, nil
	}
	if age, err := time.ParseDuration(text); err == nil && age >= 0 {
		return now.Add(-age), false, nil
	}
	return at, false, fmt.Errorf("%q: write a date like 2026-01-31, a time like 2026-01-31T12:00:00Z, or an age like 36h", text)
}

func (f jobFilter) takes(p pipeline.Progress) bool {
	return (f.state == "" || p.State == f.state) &&
		(f.since.IsZero() || !p.UpdatedAt.Before(f.since)) &&
		(f.until.IsZero() || !p.UpdatedAt.After(f.until))
}

// listedJob is a job that the filter takes.
type listedJob struct {
	progress pipeline.Progress
	record   []byte
}

func (p program) listJobs(ctx context.Context, c *config.Config, kind pipeline.Kind, filter jobFilter, asJSON bool) error {
	c.KafkaCreateTopics = false
	kafka, err := openKafka(ctx, c, kind, p.log(c))
	if err != nil {
		return err
	}
	defer kafka.Close()
	var jobs []listedJob
	readErr := kafka.Jobs(ctx, func(progress pipeline.Progress, record []byte) error {
		if filter.takes(progress) {
			job := listedJob{progress: progress}
			if asJSON {
				job.record = record
			}
			jobs = append(jobs, job)
		}
		return nil
	})
	if readErr != nil && len(jobs) == 0 {
		return readErr
	}
	slices.SortFunc(jobs, func(a, b listedJob) int {
		return cmp.Or(a.progress.UpdatedAt.Compare(b.progress.UpdatedAt), strings.Compare(a.progress.JobID, b.progress.JobID))
	})
	return errors.Join(p.printJobs(jobs, asJSON), readErr)
}

func (p program) printJobs(jobs []listedJob, asJSON bool) error {
	out := bufio.NewWriter(p.stdout)
	switch {
	case asJSON:
		for _, job := range jobs {
			fmt.Fprintf(out, "%s\n", job.record)
		}
	case isTerminal(p.stdout):
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "JOB\tSTATE\tRUN\tPUBLISHED\tDEAD-LETTERED\tTOTAL\tUPDATED")
		for _, job := range jobs {
			j := job.progress
			fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", j.JobID, j.State, j.Run, j.Published, j.DeadLettered,
				j.TotalRecords, j.UpdatedAt.Format(time.RFC3339))
		}
		table.Flush()
	default:
		for _, job := range jobs {
			fmt.Fprintln(out, job.progress.JobID)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("standard output: %w", err)
	}
	return nil
}

package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"rebound/config"
	"rebound/pipeline"
	"rebound/sink"
	"rebound/source"
)

func (p program) verifyCommand() *cobra.Command {
	var jobsFile string
	var kind pipeline.Kind
	command := &cobra.Command{
		Use:   "verify JOB_ID…",
		Short: "Compare what is published of jobs with what FullStory says",
		Long: `Reads back what is committed of the last run of each job, reads the job's pages
from FullStory again, and compares both, message by message and byte for byte.

The exit status is 0 only where every failure is there, once, and nothing else.`,
		Example: `  rebound verify abd123=`,
	}
	settings := p.settings(command)
	kindFlag(command, &kind)
	command.Flags().StringVar(&jobsFile, "jobs-file", "", "read job ids from `FILE`, one a line, # comments; - is standard input")
	command.RunE = func(command *cobra.Command, ids []string) error {
		ids, err := p.jobIDs(ids, jobsFile)
		if err != nil {
			return err
		}
		c, err := settings(config.FullStory | config.Kafka)
		if err != nil {
			return err
		}
		return p.verifyJobs(command.Context(), c, kind, ids)
	}
	return command
}

func (p program) verifyJobs(ctx context.Context, c *config.Config, kind pipeline.Kind, ids []string) error {
	log := p.log(c)
	api := newSource(c, kind, log)
	c.KafkaCreateTopics = false
	kafka, err := openKafka(ctx, c, kind, log)
	if err != nil {
		return err
	}
	defer kafka.Close()

	allThere := true
	for _, id := range ids {
		ok, err := p.verifyJob(ctx, api, kafka, form(c, kind), id)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			fmt.Fprintf(p.stderr, "rebound: verify job %s: %v\n", id, err)
		}
		allThere = allThere && ok && err == nil
	}
	if !allThere {
		return failedError{}
	}
	return nil
}

// kindArgument is what a command line has for the kind.
func kindArgument(kind pipeline.Kind) string {
	if kind == pipeline.Users {
		return ""
	}
	return " --kind " + kind.String()
}

// verifyJob prints what was found of the job and reports whether all is there
// once.
func (p program) verifyJob(ctx context.Context, api *source.API, kafka *sink.Kafka, form pipeline.Form, id string) (bool, error) {
	progress, committed, err := kafka.Committed(ctx, id)
	if err != nil {
		return false, err
	}
	if progress.Run == 0 {
		return false, fmt.Errorf("it was never published: run \"rebound run%s %s\" first", kindArgument(form.Kind), id)
	}
	report, err := pipeline.Verify(ctx, api, committed, pipeline.NewRun(form, id, progress.Run), kafka.Limits())
	if err != nil {
		return false, err
	}
	fmt.Fprintf(p.stdout, "job %s, run %d, %s\n", id, progress.Run, progress.State)
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "  expected\t%d\n  present\t%d\n", report.Expected, report.Present)
	for _, row := range []struct {
		name    string
		finding pipeline.Finding
	}{
		{"missing", report.Missing}, {"repeated", report.Repeated}, {"different", report.Different}, {"unexpected", report.Unexpected},
	} {
		ids := strings.Join(row.finding.IDs, " ")
		if int64(len(row.finding.IDs)) < row.finding.Count {
			ids += " …"
		}
		fmt.Fprintf(table, "  %s\t%d\t%s\n", row.name, row.finding.Count, ids)
	}
	if err := table.Flush(); err != nil {
		return false, fmt.Errorf("standard output: %w", err)
	}
	if !report.OK() {
		what := "run it again to publish what is missing"
		if progress.State == pipeline.Done {
			what = "publish it anew with --replay"
		}
		return false, fmt.Errorf("not everything is there once: %s", what)
	}
	return true, nil
}

package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func (p program) checkCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "check [JOB_ID…]",
		Short: "Try the configuration for real, changing nothing",
		Long: `Tries the configuration for real: the API key, the brokers, the topics and the
permissions. It prints a line a check and changes nothing. Given job ids, it
looks whether their failures can be read, too.`,
	}
	_ = tabwriter.NewWriter
	_ = fmt.Sprint
	return command
}

func (p program) demoCommand() *cobra.Command { return &cobra.Command{Use: "demo"} }

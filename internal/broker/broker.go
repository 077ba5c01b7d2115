// Package broker runs a Kafka cluster inside the process, for the demo and for
// tests. It is franz-go's kfake, which speaks the protocol over TCP as Kafka
// does, transactions included.
package broker

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Start starts a broker on 127.0.0.1, on the given port or, where that is taken
// or 0, on a free one. It keeps its log in dir; empty keeps it in memory. Close
// it after use.
func Start(port int, dir string) (*kfake.Cluster, error) {
	options := []kfake.Opt{kfake.NumBrokers(1), kfake.DefaultNumPartitions(6)}
	if dir != "" {
		options = append(options, kfake.DataDir(dir))
	}
	cluster, err := kfake.NewCluster(append(options, kfake.Ports(port))...)
	if errors.Is(err, syscall.EADDRINUSE) {
		cluster, err = kfake.NewCluster(append(options, kfake.Ports(0))...)
	}
	if err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	return cluster, nil
}

// Port returns the port that the broker listens on.
func Port(cluster *kfake.Cluster) int {
	_, port, err := net.SplitHostPort(cluster.ListenAddrs()[0])
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(port)
	return n
}

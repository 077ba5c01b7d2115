package status

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
)

// Site is an instance's HTTP side from the moment when its process starts: alive,
// and not ready, until it is given a server to show. It is safe for concurrent
// use.
type Site struct {
	shown atomic.Pointer[Server]
}

// Show has the site show a server from now on, and keeps that up to date until
// ctx ends.
func (s *Site) Show(ctx context.Context, server *Server) {
	go server.board.follow(ctx, server.Kafka, server.Metrics, server.notReady, server.Log)
	s.shown.Store(server)
}

// ServeHTTP is part of [http.Handler].
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if server := s.shown.Load(); server != nil {
		server.ServeHTTP(w, r)
		return
	}
	if r.URL.Path == "/healthz" {
		alive(w)
		return
	}
	w.Header().Set("Retry-After", "1")
	problem(w, http.StatusServiceUnavailable, "the instance starts: the brokers have not answered yet")
}

// Serve serves until ctx ends, and for a moment more: whoever has begun to
// submit jobs is to hear whether they were taken.
func (s *Site) Serve(ctx context.Context, listener net.Listener, log *slog.Logger) error {
	server := &http.Server{
		Handler:           http.NewCrossOriginProtection().Handler(s),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	}()
	const maxConnections = 512
	err := server.Serve(netutil.LimitListener(listener, maxConnections))
	if errors.Is(err, http.ErrServerClosed) {
		<-closed
		return nil
	}
	return err
}

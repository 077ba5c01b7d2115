package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"rebound/pipeline"
)

// display shows how a run goes on: as a line that is rewritten on a terminal,
// elsewhere as a log line now and then.
type display struct {
	line  *statusLine
	total int // jobs

	mu      sync.Mutex
	running map[string]pipeline.Progress
	first   map[string]int64 // position at which this process took a job up
	handled int64            // results of jobs that have ended, by this process
	ended   int
	samples []sample // of the last paceWindow, one for each time that the status was asked for

	cancel context.CancelFunc
	done   chan struct{}
}

// sample is how many records were handled at a moment.
type sample struct {
	at      time.Time
	records int64
}

// How often progress is shown, and over which time the pace is taken: jobs that
// FullStory still processes make the time before the first page say nothing of it.
const (
	lineInterval = 200 * time.Millisecond
	logInterval  = 10 * time.Second
	paceWindow   = 30 * time.Second
)

func newDisplay(w io.Writer, jobs int) *display {
	return &display{
		line:    &statusLine{out: w},
		total:   jobs,
		running: make(map[string]pipeline.Progress),
		first:   make(map[string]int64),
	}
}

// writer returns where everything else is to be written, so that it does not
// mix with the line.
func (d *display) writer() io.Writer { return d.line }

func (d *display) start(ctx context.Context, log *slog.Logger) {
	ctx, d.cancel = context.WithCancel(ctx)
	d.done = make(chan struct{})
	d.samples = []sample{{time.Now(), 0}}
	onTerminal := isTerminal(d.line)
	interval := logInterval
	if onTerminal {
		interval = lineInterval
	}
	go func() {
		defer close(d.done)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			s := d.status()
			if onTerminal {
				d.line.set(s.String())
			} else {
				log.Info("progress", "records", s.records, "total", s.of, "percent", s.percent(),
					"records_per_second", int64(s.rate), "left", s.left(), "jobs_ended", s.ended, "jobs", s.jobs)
			}
		}
	}()
}

// report takes the progress of a job that is running.
func (d *display) report(p pipeline.Progress) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.running[p.JobID]; !ok {
		d.first[p.JobID] = 0
		if p.Pages > 1 {
			d.first[p.JobID] = p.Position()
		}
	}
	d.running[p.JobID] = p
}

// end takes note that a job has ended.
func (d *display) end(jobID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.handled += d.running[jobID].Position() - d.first[jobID]
	delete(d.running, jobID)
	d.ended++
}

func (d *display) stop() {
	d.cancel()
	<-d.done
	d.line.set("")
}

// moment is a moment of the run. Records count what this process has handled;
// of what it has to handle the jobs in flight are known.
type moment struct {
	records, of int64
	rate        float64
	ended, jobs int
}

func (d *display) status() moment {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := moment{records: d.handled, of: d.handled, ended: d.ended, jobs: d.total}
	for id, p := range d.running {
		s.records += p.Position() - d.first[id]
		s.of += max(p.TotalRecords, p.Position()) - d.first[id]
	}
	now := time.Now()
	d.samples = append(d.samples, sample{now, s.records})
	for len(d.samples) > 2 && now.Sub(d.samples[1].at) >= paceWindow {
		d.samples = d.samples[1:]
	}
	oldest := d.samples[0]
	if elapsed := now.Sub(oldest.at).Seconds(); elapsed > 0 {
		s.rate = float64(s.records-oldest.records) / elapsed
	}
	return s
}

func (s moment) percent() int {
	if s.of == 0 {
		return 0
	}
	return int(100 * s.records / s.of)
}

// unknown stands for the time left where nothing moves.
const unknown = "unknown"

// left says how long the rest takes at this pace.
func (s moment) left() string {
	if s.rate < 1 {
		return unknown
	}
	return time.Duration(float64(s.of-s.records) / s.rate * float64(time.Second)).Round(time.Second).String()
}

func (s moment) String() string {
	line := fmt.Sprintf("%d of %d records (%d %%), %.0f/s", s.records, s.of, s.percent(), s.rate)
	if left := s.left(); left != unknown {
		line += ", " + left + " left"
	}
	if s.of == 0 {
		line = "waiting for the first page"
	}
	if s.jobs > 1 {
		line += fmt.Sprintf("; %d of %d jobs ended", s.ended, s.jobs)
	}
	return line
}

// statusLine is a writer for a terminal whose last line it rewrites; what is
// written goes above it. It is safe for concurrent use.
type statusLine struct {
	mu   sync.Mutex
	out  io.Writer
	line string
}

// eraseLine takes the cursor to the line's begin and erases the line.
const eraseLine = "\r\x1b[K"

func (l *statusLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.line == "" {
		return l.out.Write(p)
	}
	io.WriteString(l.out, eraseLine)
	n, err := l.out.Write(p)
	io.WriteString(l.out, l.line)
	return n, err
}

// set replaces the line; empty removes it.
func (l *statusLine) set(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if file, ok := l.out.(*os.File); ok {
		// A line that the terminal wraps could not be erased.
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 && len(line) >= width {
			line = line[:width-1]
		}
	}
	if line == l.line {
		return
	}
	io.WriteString(l.out, eraseLine+line)
	l.line = line
}

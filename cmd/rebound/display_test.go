package main

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rebound/pipeline"
)

func TestProgressIsLoggedAtTheCurrentPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		d := newDisplay(io.Discard, 2)
		d.start(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
		last := func() string {
			lines := strings.Split(strings.TrimSpace(log.String()), "\n")
			_, values, _ := strings.Cut(lines[len(lines)-1], "msg=progress ")
			return values
		}
		at := func(moment time.Duration, job string, published, total int64, want string) {
			t.Helper()
			d.report(pipeline.Progress{JobID: job, Pages: 1, Published: published, TotalRecords: total})
			time.Sleep(moment)
			synctest.Wait()
			if last() != want {
				t.Errorf("it says\n%s, want\n%s", last(), want)
			}
		}
		time.Sleep(time.Hour + time.Millisecond) // in which FullStory processes the job
		at(10*time.Second, "a", 0, 9000, "records=0 total=9000 percent=0 records_per_second=0 left=unknown jobs_ended=0 jobs=2")
		at(10*time.Second, "a", 3000, 9000, "records=3000 total=9000 percent=33 records_per_second=100 left=1m0s jobs_ended=0 jobs=2")
		d.end("a")
		at(10*time.Second, "b", 2000, 6000, "records=5000 total=9000 percent=55 records_per_second=166 left=24s jobs_ended=1 jobs=2")
		at(60*time.Second, "b", 2000, 6000, "records=5000 total=9000 percent=55 records_per_second=0 left=unknown jobs_ended=1 jobs=2")
		d.stop()
	})
}

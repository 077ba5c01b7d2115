package status

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"rebound/internal/fleet"
	"rebound/pipeline"
)

// How many jobs the page shows of those that wait, and of those that have ended.
const (
	maxWaiting = 25
	maxEnded   = 25
	maxBars    = 12
)

// view is what the page shows.
type view struct {
	Name             string
	Partitions, Of   int
	RequestsASecond  string
	RecordsASecond   string
	Records          string
	API, Brokers     health
	Running          []row
	Elsewhere        []row
	Parked, Queued   []row
	MoreParked       int
	MoreQueued       int
	Ended            []row
	Codes            []bar
	NRunning         int
	NParked, NQueued int
}

// health is how something that is needed does.
type health struct {
	OK   bool
	Text string
}

// row is a job.
type row struct {
	job
	Key      string // an id for HTML
	Href     string
	Progress string
	Percent  int
	Speed    string
	Left     string
	When     string
	ISO      string
}

// bar is a code in the chart.
type bar struct {
	Code, Count string
	Percent     int
}

func (s *Server) view() view {
	now := time.Now()
	v := view{Name: s.Name}
	var perSecond float64
	v.Partitions, v.Of, perSecond = s.Fleet.Share()
	v.RequestsASecond = strconv.FormatFloat(perSecond, 'f', -1, 64)
	if perSecond != float64(int(perSecond)) {
		v.RequestsASecond = fmt.Sprintf("%.1f", perSecond)
	}
	v.RecordsASecond = grouped(int64(s.board.recordsPerSecond()))
	records, api := s.Metrics.totals()
	v.Records = grouped(records)
	v.API, v.Brokers = apiState(api, now), s.board.brokers()

	counts := s.Fleet.Counts()
	v.NRunning, v.NParked, v.NQueued = counts[fleet.Running], counts[fleet.Parked], counts[fleet.Queued]
	for _, j := range s.board.jobs() {
		r := rowOf(j, now)
		switch {
		case j.Here && j.State == string(fleet.Running):
			v.Running = append(v.Running, r)
		case j.Here && j.State == string(fleet.Parked):
			v.Parked = append(v.Parked, r)
		case j.Here:
			v.Queued = append(v.Queued, r)
		case j.State == string(pipeline.Running):
			v.Elsewhere = append(v.Elsewhere, r)
		default:
			v.Ended = append(v.Ended, r)
		}
	}
	v.Parked, v.Queued = first(v.Parked, maxWaiting), first(v.Queued, maxWaiting)
	v.MoreParked, v.MoreQueued = v.NParked-len(v.Parked), v.NQueued-len(v.Queued)
	v.Ended, v.Elsewhere = first(v.Ended, maxEnded), first(v.Elsewhere, maxWaiting)
	v.Codes = bars(s.Metrics.byCode())
	return v
}

func first(rows []row, n int) []row { return rows[:min(len(rows), n)] }

func rowOf(j job, now time.Time) row {
	r := row{job: j, Key: fmt.Sprintf("job-%x", j.JobID), Href: "jobs/" + url.PathEscape(j.JobID)}
	if j.Kind != pipeline.Users {
		r.Key += "-" + j.Kind.String()
		r.Href += "?kind=" + j.Kind.String()
	}
	if j.TotalRecords > 0 {
		r.Percent = int(100 * j.handled() / j.TotalRecords)
	}
	r.Progress = fmt.Sprintf("%s of %s", grouped(j.handled()), grouped(max(j.TotalRecords, j.handled())))
	if j.RecordsPerSecond >= 1 {
		r.Speed = grouped(int64(j.RecordsPerSecond)) + "/s"
		left := float64(j.TotalRecords-j.handled()) / j.RecordsPerSecond
		r.Left = roughly(time.Duration(left * float64(time.Second)))
	}
	at := j.UpdatedAt
	if j.NextTry != nil {
		at = j.NextTry
		r.When = "in " + roughly(max(at.Sub(now), 0))
	} else if at != nil {
		r.When = roughly(max(now.Sub(*at), 0)) + " ago"
	}
	if at != nil {
		r.ISO = at.UTC().Format(time.RFC3339)
	}
	return r
}

// roughly words a duration with one unit.
func roughly(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// grouped writes a number with its thousands set apart.
func grouped(n int64) string {
	digits := strconv.FormatInt(n, 10)
	var b strings.Builder
	for i, c := range digits {
		if i > 0 && c != '-' && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	return b.String()
}

func apiState(a apiHealth, now time.Time) health {
	ago := roughly(now.Sub(a.at)) + " ago"
	switch {
	case a.at.IsZero():
		return health{true, "not asked yet"}
	case a.status == 0:
		return health{false, "no answer " + ago}
	case a.status >= 500 || a.status == http.StatusUnauthorized || a.status == http.StatusForbidden:
		return health{false, fmt.Sprintf("answered %d %s", a.status, ago)}
	}
	return health{true, fmt.Sprintf("answered %d %s", a.status, ago)}
}

// bars makes the chart: the most frequent codes, and the sum of the others.
func bars(codes []codeCount) []bar {
	var list []bar
	var most, others int64
	for i, c := range codes {
		if i >= maxBars || c.Code == otherCodes {
			others += c.Count
			continue
		}
		most = max(most, c.Count)
		list = append(list, bar{Code: c.Code, Count: grouped(c.Count), Percent: int(100 * c.Count / most)})
	}
	if others > 0 {
		list = append(list, bar{Code: "all others", Count: grouped(others), Percent: int(min(100*others/max(most, 1), 100))})
	}
	return list
}

// showPage shows everything as it is now.
func (s *Server) showPage(w http.ResponseWriter, _ *http.Request) {
	var page bytes.Buffer
	if err := s.page.ExecuteTemplate(&page, "page", s.view()); err != nil {
		problem(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(page.Bytes())
}

// showEvents sends the page's inside each second, where it has changed, as
// server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html
func (s *Server) showEvents(w http.ResponseWriter, r *http.Request) {
	select {
	case s.viewers <- struct{}{}:
		defer func() { <-s.viewers }()
	default:
		w.Header().Set("Retry-After", "60")
		problem(w, http.StatusServiceUnavailable, "too many people look on already; reload the page now and then instead")
		return
	}
	control := http.NewResponseController(w)
	// The request has come; nothing more is read.
	_ = control.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var last []byte
	for quiet := 0; ; quiet++ {
		var inside bytes.Buffer
		if err := s.page.ExecuteTemplate(&inside, "live", s.view()); err != nil {
			return
		}
		event := ": nothing new\n\n"
		if !bytes.Equal(inside.Bytes(), last) {
			last = inside.Bytes()
			event = "data: " + strings.ReplaceAll(strings.TrimSpace(inside.String()), "\n", "\ndata: ") + "\n\n"
			quiet = 0
		}
		if quiet%15 == 0 {
			_ = control.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if _, err := w.Write([]byte(event)); err != nil || control.Flush() != nil {
				return
			}
		}
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return
		}
	}
}

package status

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"rebound/config"
	"rebound/pipeline"
)

// maxIntake is the largest body of a submission: some 300,000 ids.
const maxIntake = 8 << 20

// submission is the body of POST /jobs.
type submission struct {
	JobIDs []string      `json:"job_ids"`
	Kind   pipeline.Kind `json:"kind"`
	Replay bool          `json:"replay"`
}

// takeJobs appends jobs to the jobs topic and answers once Kafka has them.
func (s *Server) takeJobs(w http.ResponseWriter, r *http.Request) {
	if !s.maySubmit(w, r) {
		return
	}
	select {
	case s.intake <- struct{}{}:
		defer func() { <-s.intake }()
	case <-r.Context().Done():
		return
	}
	var body submission
	if !readSubmission(w, r, &body) {
		return
	}
	orders, wrong := body.orders()
	switch {
	case len(wrong) > 0:
		problem(w, http.StatusUnprocessableEntity, "some ids are no job ids; none was taken", "errors", wrong)
		return
	case len(orders) == 0:
		problem(w, http.StatusUnprocessableEntity, `job_ids is empty: write {"job_ids":["abd123="]}`)
		return
	}
	if err := s.Kafka.Submit(r.Context(), orders); err != nil {
		s.Log.Error("submitted jobs could not be written", "jobs", len(orders), "error", err)
		w.Header().Set("Retry-After", "5")
		problem(w, http.StatusServiceUnavailable, "Kafka did not take all of them; submit them again, what is there twice is published once: "+err.Error())
		return
	}
	s.Log.Info("jobs were submitted", "jobs", len(orders), "replay", body.Replay)
	writeJSON(w, http.StatusAccepted, map[string]int{"accepted": len(orders), "duplicates": len(body.JobIDs) - len(orders)})
}

// maySubmit answers whoever may not.
func (s *Server) maySubmit(w http.ResponseWriter, r *http.Request) bool {
	if s.Token == "" {
		// Another site's page could reach a loopback address under a name of
		// its own.
		if s.Loopback && isLoopback(r.Host) {
			return true
		}
		problem(w, http.StatusForbidden, "jobs are taken on a loopback address only as long as HTTP_TOKEN is not set")
		return false
	}
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	want, got := sha256.Sum256([]byte(s.Token)), sha256.Sum256([]byte(strings.TrimSpace(given)))
	if !ok || subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
		w.Header().Set("WWW-Authenticate", `Bearer realm="rebound"`)
		problem(w, http.StatusUnauthorized, "send the header Authorization: Bearer, with the token in HTTP_TOKEN")
		return false
	}
	return true
}

func isLoopback(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		host = hostPort
	}
	return config.IsLoopback(strings.Trim(host, "[]"))
}

// readSubmission reads the body, or answers what is wrong with it.
func readSubmission(w http.ResponseWriter, r *http.Request, body *submission) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxIntake))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(body)
	if err == nil {
		if _, err = decoder.Token(); err == io.EOF {
			return true
		} else if err == nil {
			err = errors.New("something follows the JSON object")
		}
	}
	var tooLarge *http.MaxBytesError
	var timeout net.Error
	switch {
	case errors.As(err, &tooLarge):
		problem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes; submit the jobs in several parts", maxIntake))
	case errors.As(err, &timeout) && timeout.Timeout():
		problem(w, http.StatusRequestTimeout, "the body did not come in time")
	default:
		problem(w, http.StatusBadRequest, fmt.Sprintf(`the body is not like {"job_ids":["abd123="],"replay":false,"kind":"users"}: %v`, err))
	}
	return false
}

// wrongID says what is wrong with which id.
type wrongID struct {
	Pointer string `json:"pointer"`
	Detail  string `json:"detail"`
}

// orders returns each job once, or what is wrong with the ids: the first hundred.
func (b *submission) orders() (orders []pipeline.Order, wrong []wrongID) {
	seen := make(map[string]struct{}, len(b.JobIDs))
	for i, id := range b.JobIDs {
		if err := pipeline.CheckJobID(id); err != nil {
			if wrong = append(wrong, wrongID{fmt.Sprintf("/job_ids/%d", i), err.Error()}); len(wrong) == 100 {
				return nil, wrong
			}
			continue
		}
		if _, ok := seen[id]; !ok {
			seen[id] = struct{}{}
			orders = append(orders, pipeline.Order{JobID: id, Kind: b.Kind, Replay: b.Replay})
		}
	}
	return orders, wrong
}

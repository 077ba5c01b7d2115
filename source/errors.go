package source

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"rebound/pipeline"
)

// Error is an answer of the API that ends a job.
type Error struct {
	JobID string
	// PageToken is the page asked for; empty is the first.
	PageToken string
	// Status is the HTTP status; Code and Message are the API's own, empty
	// where the body was not the API's.
	Status        int
	Code, Message string
}

func (e *Error) Error() string {
	var text strings.Builder
	fmt.Fprintf(&text, "job %s: FullStory answers %d %s", e.JobID, e.Status, http.StatusText(e.Status))
	if e.Code != "" || e.Message != "" {
		fmt.Fprintf(&text, " (%s: %s)", e.Code, e.Message)
	}
	text.WriteString(": ")
	text.WriteString(e.hint())
	return text.String()
}

func (e *Error) hint() string {
	switch e.Status {
	case http.StatusUnauthorized:
		return "check FULLSTORY_API_KEY, and that FULLSTORY_BASE_URL is the data centre that issued it"
	case http.StatusForbidden:
		return "the API key needs the permission to read import jobs: use one of an admin or architect (FULLSTORY_API_KEY)"
	case http.StatusNotFound:
		return "check the job id, its kind (users or events), and that FULLSTORY_BASE_URL is the data centre it was created in; old jobs expire"
	case http.StatusBadRequest:
		return "check the job id"
	default:
		return "not worth another try; see the API's message"
	}
}

// Is reports a refused page as [pipeline.ErrPageToken].
func (e *Error) Is(target error) bool {
	return target == pipeline.ErrPageToken && e.PageToken != "" &&
		(e.Status == http.StatusBadRequest || e.Status == http.StatusNotFound)
}

// Why a page is asked for again, or, in the end, is given up.
var (
	// ErrProcessing: FullStory still processes the job, 202.
	ErrProcessing = errors.New("FullStory still processes the job")
	// errPage: the body is not what the API sends.
	errPage = errors.New("the page is damaged")
	// errTooLarge: no retry makes the body smaller.
	errTooLarge = errors.New("the page is larger than 512 MiB")
	// errRepeatedToken: following the token would never end.
	errRepeatedToken = errors.New("the page's next token was seen before in this job")
)

// Permanent tells whether an error of this package stays the same however often
// the job is tried: the job itself is to blame, not the API key, the network or
// an outage.
func Permanent(err error) bool {
	var refused *Error
	if errors.As(err, &refused) {
		return refused.Status == http.StatusBadRequest || refused.Status == http.StatusNotFound
	}
	return errors.Is(err, errTooLarge) || errors.Is(err, errRepeatedToken)
}

// rateLimitedError is a 429.
type rateLimitedError struct {
	// retryAfter is what the API asks to wait; negative where it does not say.
	retryAfter time.Duration
}

func (e *rateLimitedError) Error() string {
	return "FullStory answers 429 Too Many Requests; lower FULLSTORY_RATE_LIMIT if that is frequent"
}

// statusError is a status that may go away.
type statusError struct {
	status int
	code   string
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("FullStory answers %d %s", e.status, http.StatusText(e.status))
	if e.code != "" {
		text += " (" + e.code + ")"
	}
	return text
}

// pageName says which page of which job an error is about. Tokens are opaque
// and long ones are cut.
func pageName(jobID, token string) string {
	if token == "" {
		return fmt.Sprintf("job %s, first page", jobID)
	}
	if len(token) > 40 {
		token = token[:40] + "…"
	}
	return fmt.Sprintf("job %s, page %q", jobID, token)
}

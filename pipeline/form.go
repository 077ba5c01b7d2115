package pipeline

import (
	"fmt"
	"log/slog"
	"net/url"
)

// Kind says what an import job imports. The zero value is Users.
type Kind string

const (
	// Users is the kind of jobs of POST /v2/users/batch.
	Users Kind = ""
	// Events is the kind of jobs of POST /v2/events/batch. Their failures have
	// an event instead of a user, and what the import's events share.
	Events Kind = "events"
)

// ParseKind reads "users" or "events".
func ParseKind(text string) (Kind, error) {
	switch text {
	case "users":
		return Users, nil
	case "events":
		return Events, nil
	}
	return Users, fmt.Errorf("%.40q is no kind of job: write users or events", text)
}

// UnmarshalText reads a kind as [ParseKind] does.
func (k *Kind) UnmarshalText(text []byte) (err error) {
	*k, err = ParseKind(string(text))
	return err
}

// String returns "users" or "events", as the API's paths have it.
func (k Kind) String() string {
	if k == Events {
		return "events"
	}
	return "users"
}

// Subject names the member of a result that holds the request that failed.
func (k Kind) Subject() string {
	if k == Events {
		return "event"
	}
	return "user"
}

// Schema names the form of a failure's value, in the header schema.
func (k Kind) Schema() string { return "rebound.failed-" + k.Subject() + ".v1" }

// Logger returns a logger that says the kind where it is not the usual one.
func (k Kind) Logger(log *slog.Logger) *slog.Logger {
	if k == Users {
		return log
	}
	return log.With("kind", k.String())
}

// reasonNone is why a result without its subject is a dead letter.
func (k Kind) reasonNone() string {
	if k == Events {
		return ReasonNoEvent
	}
	return ReasonNoUser
}

// Form says what the messages of a job are like. The zero value is the form of
// users, with all their members.
type Form struct {
	Kind Kind
	// Fields hides members of users and events; nil hides none.
	Fields *Fields
	// CloudEvents gives failures the headers of a CloudEvent, too, in the
	// binary content mode:
	// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
	CloudEvents bool
}

// cloudEvent returns the headers that a run's CloudEvents have in common. The id
// is the failure's own.
func (f Form) cloudEvent(jobID string) []Header {
	if !f.CloudEvents {
		return nil
	}
	return []Header{
		{"ce_specversion", []byte("1.0")},
		{"ce_type", []byte(f.Kind.Schema())},
		{"ce_source", []byte("/v2/" + f.Kind.String() + "/batch/" + url.PathEscape(jobID))},
	}
}

package simulator

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/mail"
	"regexp"
	"time"
	"unicode/utf8"
)

// maxRequests is how many users or events one import may have.
const maxRequests = 50_000

// createImport takes an import, validates each request, and remembers what became
// of it. The same Idempotency-Key gets the same job.
func (s *Simulator) createImport(r *http.Request) (int, any) {
	var body struct {
		Requests []json.RawMessage `json:"requests"`
		Shared   json.RawMessage   `json:"shared"`
	}
	kind := kindOf(r.PathValue("kind"))
	if kind != Users && kind != Events {
		return notFound()
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 256<<20)).Decode(&body); err != nil {
		return http.StatusBadRequest, apiError{"The body is no import: " + err.Error(), "invalid_request"}
	}
	if n := len(body.Requests); n == 0 || n > maxRequests {
		return http.StatusBadRequest, apiError{fmt.Sprintf("An import has 1 to %d requests, not %d", maxRequests, n), "invalid_request"}
	}
	j := &postedJob{size: s.options.PageSize, created: time.Now()}
	j.finished = j.created.Add(s.options.Processing)
	for _, request := range body.Requests {
		code, message := validateUser(request)
		if kind == Events {
			code, message = validateEvent(request)
		}
		if code == "" {
			j.accepted = append(j.accepted, request)
		} else {
			j.failed = append(j.failed, failure(kind, code, message, request, body.Shared))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := r.Header.Get("Idempotency-Key")
	if known := s.jobs[s.idempotency[key]]; key != "" && known != nil {
		return http.StatusOK, map[string]any{"job": known.metadata()}
	}
	j.jobID = s.newJobID()
	s.jobs[jobKey{kind, j.jobID}] = j
	if key != "" {
		s.idempotency[key] = jobKey{kind, j.jobID}
	}
	created := metadata(j.jobID, j.created, j.created.Add(time.Hour), 0) // PROCESSING, whatever is true a moment later
	return http.StatusOK, map[string]any{"job": created}
}

// failure returns the result for a user or an event that was not imported, byte
// for byte as posted, and with what the events share.
func failure(kind Kind, code, message string, request, shared []byte) []byte {
	quoted, err := json.Marshal(message)
	if err != nil {
		quoted = []byte(`""`) // strings always marshal
	}
	if kind == Users {
		return fmt.Appendf(nil, `{"message":%s,"code":%q,"user":%s}`, quoted, code, request)
	}
	result := fmt.Appendf(nil, `{"message":%s,"code":%q,"event":%s`, quoted, code, request)
	if len(shared) > 0 {
		result = fmt.Appendf(result, `,"shared":%s`, shared)
	}
	return append(result, '}')
}

var propertyName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)

// validateEvent returns why an event cannot be imported; an empty code where it
// can.
func validateEvent(raw json.RawMessage) (code, message string) {
	var event struct {
		Name       *string         `json:"name"`
		Timestamp  string          `json:"timestamp"`
		Properties json.RawMessage `json:"properties"`
	}
	if err := json.Unmarshal(raw, &event); err != nil {
		return "invalid_type", "an event is an object, its name and timestamp are strings"
	}
	if event.Name == nil || *event.Name == "" {
		return "required_field", "name is required"
	}
	if _, err := time.Parse(time.RFC3339, event.Timestamp); event.Timestamp != "" && err != nil {
		return "invalid_timestamp", "timestamp is not ISO 8601"
	}
	if len(event.Properties) > 0 {
		return validateProperties(event.Properties)
	}
	return "", ""
}

// validateUser returns why a user cannot be imported; an empty code where it can.
func validateUser(raw json.RawMessage) (code, message string) {
	var user map[string]json.RawMessage
	if err := json.Unmarshal(raw, &user); err != nil || user == nil {
		return "invalid_type", "a request is an object"
	}
	for _, field := range []struct {
		name string
		most int
	}{{"uid", 256}, {"display_name", 256}, {"email", 128}} {
		value, ok := user[field.name]
		if !ok {
			continue
		}
		var text string
		if json.Unmarshal(value, &text) != nil {
			return "invalid_type", field.name + " is a string"
		}
		if n := utf8.RuneCountInString(text); n > field.most {
			return "too_long", fmt.Sprintf("%s has %d characters, at most %d are allowed", field.name, n, field.most)
		}
		if field.name == "uid" && text == "" {
			return "required_field", "uid is required"
		}
		if field.name == "email" && text != "" {
			if _, err := mail.ParseAddress(text); err != nil {
				return "invalid_email", "email is not a valid address"
			}
		}
	}
	if _, ok := user["uid"]; !ok {
		return "required_field", "uid is required"
	}
	if properties, ok := user["properties"]; ok {
		return validateProperties(properties)
	}
	return "", ""
}

func validateProperties(raw json.RawMessage) (code, message string) {
	var properties map[string]json.RawMessage
	if err := json.Unmarshal(raw, &properties); err != nil {
		return "invalid_type", "properties is an object"
	}
	if len(properties) > 500 {
		return "too_many_properties", fmt.Sprintf("%d properties, at most 500 are allowed", len(properties))
	}
	for name, value := range properties {
		if !propertyName.MatchString(name) || len(name) > 512 {
			return "invalid_property_name", fmt.Sprintf("%q is no property name", name)
		}
		if len(value) > 8192 {
			return "property_too_large", fmt.Sprintf("%s has %d bytes, at most 8192 are allowed", name, len(value))
		}
	}
	return "", ""
}

package config

import (
	"fmt"
	"log/slog"
)

// Secret is a value that does not print itself: fmt, log/slog and
// encoding/json all get "[secret]", or "" where it is empty. Reveal returns it.
// It is behind a pointer because fmt shows unexported fields, and those under
// %p, without asking.
type Secret struct{ value *string }

const redacted = "[secret]"

// NewSecret returns a secret that holds value.
func NewSecret(value string) Secret { return Secret{&value} }

// Reveal returns the value itself.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// String hides the value.
func (s Secret) String() string {
	if s.Reveal() == "" {
		return ""
	}
	return redacted
}

// Format hides the value from every verb, %#v and %x included.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// LogValue hides the value from log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the value from encoding/json and other encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// EnvDecode reads the value from an environment variable.
func (s *Secret) EnvDecode(value string) error {
	s.value = &value
	return nil
}

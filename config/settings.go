package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Setting describes one setting to its user.
type Setting struct {
	// Variable is the environment variable.
	Variable string
	// Flag overrides the variable: KAFKA_TOPIC's is kafka-topic. Empty for a
	// secret, which a process list would show.
	Flag string
	// Default is what holds where neither is set; empty for nothing.
	Default string
	// Doc says what the setting means.
	Doc string
}

// Settings returns all settings, in the order of the README's table.
func Settings() []Setting {
	var settings []Setting
	for field := range reflect.TypeFor[Config]().Fields() {
		s := Setting{
			Variable: variableOf(field),
			Default:  field.Tag.Get("shown"),
			Doc:      field.Tag.Get("doc"),
		}
		if _, value, ok := strings.Cut(field.Tag.Get("env"), ",default="); ok && s.Default == "" {
			s.Default = value
		}
		if field.Type != reflect.TypeFor[Secret]() {
			s.Flag = strings.ReplaceAll(strings.ToLower(s.Variable), "_", "-")
		}
		settings = append(settings, s)
	}
	return settings
}

// Table returns the settings as a Markdown table.
func Table() string {
	var table strings.Builder
	table.WriteString("| variable | default | meaning |\n| --- | --- | --- |\n")
	for _, s := range Settings() {
		value := s.Default
		if value != "" && value != "required" && !strings.Contains(value, " ") {
			value = "`" + value + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", s.Variable, value, s.Doc)
	}
	return table.String()
}

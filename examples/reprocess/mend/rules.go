// Package mend closes the loop: it reads failed users from Kafka, mends those
// that its rules can mend, imports them again, and has rebound look after the new
// import in its turn.
package mend

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Rule says how users that failed with a code are mended. Pointers are JSON
// pointers into the user, with * for every member. What a rule names and a user
// does not have changes nothing.
type Rule struct {
	// Code is the failure's code.
	Code string `json:"code"`
	// Message, where set, is a regular expression that the failure's message
	// matches.
	Message string `json:"message,omitempty"`
	// Drop leaves members out.
	Drop []string `json:"drop,omitempty"`
	// Copy gives members the value of others, by pointer, where they have none.
	Copy map[string]string `json:"copy,omitempty"`
	// Truncate cuts texts to a number of characters, by pointer.
	Truncate map[string]int `json:"truncate,omitempty"`
	// Rename makes the names of an object's members such as FullStory takes.
	Rename []string `json:"rename,omitempty"`

	message *regexp.Regexp
}

// Rules are tried in order; the first that a failure matches is its own.
type Rules []*Rule

//go:embed rules.json
var exampleRules []byte

// ExampleRules returns the rules in rules.json, for FullStory's usual complaints.
func ExampleRules() Rules {
	rules, err := ParseRules(exampleRules)
	if err != nil {
		panic(err) // they are part of the program
	}
	return rules
}

// ParseRules reads a JSON array of rules.
func ParseRules(text []byte) (Rules, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	var rules Rules
	if err := decoder.Decode(&rules); err != nil {
		return nil, fmt.Errorf("the rules are no array of rules: %w", err)
	}
	for i, rule := range rules {
		var err error
		if rule.message, err = regexp.Compile(rule.Message); err != nil {
			return nil, fmt.Errorf("rule %d: message: %w", i, err)
		}
	}
	return rules, nil
}

// Apply returns the user as mended; nil where no rule changes anything. Numbers
// keep their digits.
func (rules Rules) Apply(code, message string, user []byte) ([]byte, error) {
	for _, rule := range rules {
		if rule.Code != code || !rule.message.MatchString(message) {
			continue
		}
		decoder := json.NewDecoder(bytes.NewReader(user))
		decoder.UseNumber()
		var members map[string]any
		if err := decoder.Decode(&members); err != nil {
			return nil, err
		}
		if !rule.apply(members) {
			return nil, nil
		}
		return json.Marshal(members)
	}
	return nil, nil
}

func (rule *Rule) apply(user map[string]any) (changed bool) {
	for to, from := range rule.Copy {
		each(user, from, func(parent map[string]any, name string) {
			value := parent[name]
			target := strings.TrimPrefix(to, "/")
			if user[target] == nil && value != nil && value != "" {
				user[target], changed = value, true
			}
		})
	}
	for _, pointer := range rule.Drop {
		each(user, pointer, func(parent map[string]any, name string) {
			delete(parent, name)
			changed = true
		})
	}
	for pointer, most := range rule.Truncate {
		each(user, pointer, func(parent map[string]any, name string) {
			if text, ok := parent[name].(string); ok && utf8.RuneCountInString(text) > most {
				parent[name], changed = string([]rune(text)[:most]), true
			}
		})
	}
	for _, pointer := range rule.Rename {
		each(user, pointer, func(parent map[string]any, name string) {
			members, _ := parent[name].(map[string]any)
			for old, value := range members {
				if tidy := propertyName(old); tidy != old && members[tidy] == nil {
					delete(members, old)
					members[tidy], changed = value, true
				}
			}
		})
	}
	return changed
}

// each calls visit for the members that the pointer names.
func each(user map[string]any, pointer string, visit func(parent map[string]any, name string)) {
	first, rest, deeper := strings.Cut(strings.TrimPrefix(pointer, "/"), "/")
	for name, value := range user {
		if first != "*" && first != name {
			continue
		}
		if !deeper {
			visit(user, name)
		} else if object, ok := value.(map[string]any); ok {
			each(object, rest, visit)
		}
	}
}

var notInNames = regexp.MustCompile(`[^A-Za-z0-9_]+`)

// propertyName returns the name with what FullStory does not take in names of
// properties made underscores, and a letter at its head.
func propertyName(name string) string {
	name = notInNames.ReplaceAllString(name, "_")
	if name == "" || !strings.ContainsAny(name[:1], "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") {
		name = "p_" + name
	}
	return name
}

package pipeline

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Fields hides members of users and events before anything is made of them: some
// are left out, some replaced by a keyed hash, which is the same wherever the
// value is. It is safe for concurrent use.
type Fields struct {
	users, events *field // what is hidden in a result of either kind
	key           []byte
}

// field is a member, or several, and what is hidden in it.
type field struct {
	members map[string]*field
	any     *field // of all members
	hidden  hiding
}

// hiding is how a value is hidden; the greater one wins.
type hiding int

const (
	shown hiding = iota
	hashed
	dropped
)

// HashPrefix begins the string that stands in place of a hashed value; the
// HMAC-SHA-256 follows, in hexadecimal.
const HashPrefix = "hmac-sha256:"

// NewFields returns what drops and hashes the members that JSON pointers
// (RFC 6901) into a user name; besides, * stands for every member of an object and
// every element of an array. In events they point into event and shared, and into the
// user that either has. It returns nil where there are no pointers.
func NewFields(drop, hash []string, key []byte) (*Fields, error) {
	if len(drop)+len(hash) == 0 {
		return nil, nil
	}
	f := &Fields{users: new(field), events: new(field), key: key}
	for how, pointers := range map[hiding][]string{dropped: drop, hashed: hash} {
		for _, pointer := range pointers {
			path, err := parsePointer(pointer)
			if err != nil {
				return nil, err
			}
			f.users.add(append([]string{"user"}, path...), how)
			for _, root := range []string{"event", "shared"} {
				f.events.add(append([]string{root}, path...), how)
				f.events.add(append([]string{root, "user"}, path...), how)
			}
		}
	}
	return f, nil
}

func parsePointer(pointer string) ([]string, error) {
	if !strings.HasPrefix(pointer, "/") {
		return nil, fmt.Errorf("%q is no JSON pointer into the user: write it like /email or /properties/*/phone", pointer)
	}
	path := strings.Split(pointer[1:], "/")
	for i, name := range path {
		rest := strings.NewReplacer("~0", "", "~1", "").Replace(name)
		if strings.Contains(rest, "~") {
			return nil, fmt.Errorf("%q is no JSON pointer: ~ is written ~0, and / within a name ~1", pointer)
		}
		path[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(name)
	}
	return path, nil
}

// CheckPointer tells what keeps text from being a pointer for [NewFields].
func CheckPointer(text string) error {
	_, err := parsePointer(text)
	return err
}

func (f *field) add(path []string, how hiding) {
	if len(path) == 0 {
		f.hidden = max(f.hidden, how)
		return
	}
	next := f.members[path[0]]
	switch {
	case path[0] == "*":
		if f.any == nil {
			f.any = new(field)
		}
		next = f.any
	case next == nil:
		if f.members == nil {
			f.members = make(map[string]*field)
		}
		next = new(field)
		f.members[path[0]] = next
	}
	next.add(path[1:], how)
}

// fieldSet is every field that a place in a value belongs to.
type fieldSet []*field

func (s fieldSet) hidden() (how hiding) {
	for _, f := range s {
		how = max(how, f.hidden)
	}
	return how
}

// deeper tells whether something within the place may be hidden.
func (s fieldSet) deeper() bool {
	for _, f := range s {
		if f.any != nil || len(f.members) > 0 {
			return true
		}
	}
	return false
}

// member returns the fields that an object's member, or an array's element by
// its position, belongs to.
func (s fieldSet) member(name string) (next fieldSet) {
	for _, f := range s {
		if m := f.members[name]; m != nil {
			next = append(next, m)
		}
		if f.any != nil {
			next = append(next, f.any)
		}
	}
	return next
}

// within returns the fields in a result of the kind, behind a path.
func (f *Fields) within(kind Kind, path ...string) fieldSet {
	s := fieldSet{f.users}
	if kind == Events {
		s = fieldSet{f.events}
	}
	for _, name := range path {
		s = s.member(name)
	}
	return s
}

// appendUID appends a user's uid as it is after the hiding; nothing where it is
// not shown in any way.
func (f *Fields) appendUID(dst []byte, kind Kind, literal []byte) []byte {
	paths := [][]string{{"user"}, {"user", "uid"}}
	if kind == Events {
		paths = [][]string{{"event"}, {"event", "user"}, {"event", "user", "uid"}}
	}
	last := len(paths) - 1
	for _, path := range paths[:last] {
		if f.within(kind, path...).hidden() != shown {
			return dst
		}
	}
	switch f.within(kind, paths[last]...).hidden() {
	case dropped:
		return dst
	case hashed:
		return f.appendHash(dst, literal)
	}
	return append(dst, unquote(literal)...)
}

// appendHash appends the hash of a JSON value: of a string's text, of anything
// else as failures have it, without insignificant white space.
func (f *Fields) appendHash(dst, value []byte) []byte {
	text := value
	switch value[0] {
	case '"':
		text = unquote(value)
	case '{', '[':
		text = appendCompact(nil, value)
	}
	hash := hmac.New(sha256.New, f.key)
	hash.Write(text)
	dst = append(dst, HashPrefix...)
	return hex.AppendEncode(dst, hash.Sum(nil))
}

// appendShown appends what is left of a valid JSON value, of which fields are
// hidden. What holds nothing hidden stays as it is.
func (f *Fields) appendShown(dst, value []byte, fields fieldSet) []byte {
	begin := skipSpace(value, 0)
	value = value[begin:endOfValue(value, begin)]
	switch {
	case fields.hidden() == hashed && string(value) != "null":
		dst = append(dst, '"')
		return append(f.appendHash(dst, value), '"')
	case !fields.deeper() || value[0] != '{' && value[0] != '[':
		return append(dst, value...)
	}
	object := value[0] == '{'
	dst = append(dst, value[0])
	first := true
	for at, i := skipSpace(value, 1), 0; value[at] != '}' && value[at] != ']'; i++ {
		var name []byte
		var next fieldSet
		if object {
			end := endOfValue(value, at)
			name = value[at:end]
			next = fields.member(string(unquote(name)))
			at = skipSpace(value, skipSpace(value, end)+1) // past the colon
		} else {
			next = fields.member(strconv.Itoa(i))
		}
		end := endOfValue(value, at)
		if drop := next.hidden() == dropped; !drop || !object {
			if !first {
				dst = append(dst, ',')
			}
			first = false
			if object {
				dst = append(append(dst, name...), ':')
			}
			if drop {
				dst = append(dst, "null"...) // so that the other elements keep their places
			} else {
				dst = f.appendShown(dst, value[at:end], next)
			}
		}
		if at = skipSpace(value, end); value[at] == ',' {
			at = skipSpace(value, at+1)
		}
	}
	return append(dst, value[len(value)-1])
}

func skipSpace(value []byte, at int) int {
	for at < len(value) && (value[at] == ' ' || value[at] == '\t' || value[at] == '\n' || value[at] == '\r') {
		at++
	}
	return at
}

// endOfValue returns where the JSON value that begins at begin ends.
func endOfValue(value []byte, begin int) int {
	switch value[begin] {
	case '"':
		return closingQuote(value, begin) + 1
	case '{', '[':
		depth := 0
		for at := begin; ; at++ {
			switch value[at] {
			case '"':
				at = closingQuote(value, at)
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return at + 1
				}
			}
		}
	}
	if n := bytes.IndexAny(value[begin:], ",]} \t\r\n"); n >= 0 {
		return begin + n
	}
	return len(value)
}

// redact returns what may be shown of a whole result. Where its subject is not
// where the pointers look for it, nothing tells where personal data stands, and
// ok is false.
func (f *Fields) redact(kind Kind, result *Result) (value []byte, ok bool) {
	if result.Subject == nil {
		return nil, false
	}
	return f.appendShown(nil, result.Raw, f.within(kind)), true
}

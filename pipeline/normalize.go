package pipeline

import (
	"bytes"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// UnknownCode stands where a failure came without a usable code.
const UnknownCode = "unknown"

// appendCode appends the failure code that the JSON string literal holds, in
// lower snake_case: "Required Field", "requiredField" and "REQUIRED-FIELD" all
// become required_field. Letters and digits of any script are kept; all else
// separates words. What leaves nothing behind becomes [UnknownCode].
func appendCode(dst, literal []byte) []byte {
	if len(literal) < 2 {
		return append(dst, UnknownCode...)
	}
	if inner := literal[1 : len(literal)-1]; isSnakeCase(inner) {
		return append(dst, inner...)
	}
	text := []rune(string(unquote(literal)))
	start := len(dst)
	for i, r := range text {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.IsMark(r) {
			continue
		}
		if startsWord(text, i) && len(dst) > start {
			dst = append(dst, '_')
		}
		dst = utf8.AppendRune(dst, unicode.ToLower(r))
	}
	if len(dst) == start {
		return append(dst, UnknownCode...)
	}
	return dst
}

// startsWord tells whether the letter or digit at i begins a word: after a
// separator, at the hump of camelCase, and at the last capital of an acronym
// that a word follows (HTTPError: http_error).
func startsWord(text []rune, i int) bool {
	if i == 0 {
		return true
	}
	prev, r := text[i-1], text[i]
	switch {
	case !unicode.IsLetter(prev) && !unicode.IsDigit(prev) && !unicode.IsMark(prev):
		return true
	case !isCapital(r):
		return false
	case !isCapital(prev):
		return true
	default:
		return i+1 < len(text) && unicode.IsLower(text[i+1])
	}
}

// isCapital tells whether the letter has another, lower form. Not all that
// Unicode calls upper case have one.
func isCapital(r rune) bool { return unicode.ToLower(r) != r }

func isSnakeCase(text []byte) bool {
	afterSeparator := true
	for _, c := range text {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			afterSeparator = false
		case c == '_' && !afterSeparator:
			afterSeparator = true
		default:
			return false
		}
	}
	return !afterSeparator
}

// appendMessage appends the failure's message as a JSON string literal:
// trimmed, each run of white space one space; "" where there is none.
func appendMessage(dst, literal []byte) []byte {
	if len(literal) < 2 {
		return append(dst, `""`...)
	}
	if isTidy(literal[1 : len(literal)-1]) {
		return append(dst, literal...)
	}
	text := bytes.Join(bytes.Fields(unquote(literal)), []byte{' '})
	return appendQuote(dst, text)
}

// isTidy tells whether the text between the quotes of a JSON string stays as
// it is: printable ASCII without escapes, words parted by single spaces.
func isTidy(text []byte) bool {
	afterSpace := true
	for _, c := range text {
		if c == ' ' {
			if afterSpace {
				return false
			}
			afterSpace = true
			continue
		}
		if c < ' ' || c >= 0x7f || c == '\\' || c == '"' {
			return false
		}
		afterSpace = false
	}
	return !afterSpace || len(text) == 0
}

// appendCompact appends a JSON value without insignificant white space and with
// U+FFFD for each byte that is not UTF-8. All else, member order, repeated
// names, the digits of numbers, the escapes in strings, stays as it is.
func appendCompact(dst, user []byte) []byte {
	if !utf8.Valid(user) {
		user = toValidUTF8(user)
	}
	if isCompact(user) {
		return append(dst, user...)
	}
	// The value was read from a page whose syntax was checked: it formats.
	dst, _ = jsontext.AppendFormat(dst, user,
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true), jsontext.PreserveRawStrings(true))
	return dst
}

// isCompact tells whether a valid JSON value has no white space between its
// tokens.
func isCompact(value []byte) bool {
	for i := 0; i < len(value); i++ {
		switch value[i] {
		case ' ', '\t', '\n', '\r':
			return false
		case '"':
			i = closingQuote(value, i)
		}
	}
	return true
}

// closingQuote returns the position of the quote that ends the JSON string
// that begins at open.
func closingQuote(value []byte, open int) int {
	for i := open + 1; ; i++ {
		n := bytes.IndexByte(value[i:], '"')
		if n < 0 {
			return len(value)
		}
		i += n
		backslashes := 0
		for value[i-1-backslashes] == '\\' {
			backslashes++
		}
		if backslashes%2 == 0 {
			return i
		}
	}
}

// toValidUTF8 returns text with U+FFFD in place of each byte that is not part
// of a valid encoding, as encoding/json does.
func toValidUTF8(text []byte) []byte {
	valid := make([]byte, 0, len(text)+16)
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		valid = utf8.AppendRune(valid, r)
		text = text[size:]
	}
	return valid
}

// unquote returns the text of a JSON string literal, as valid UTF-8. The
// result may point into the literal.
func unquote(literal []byte) []byte {
	inner := literal[1 : len(literal)-1]
	if bytes.IndexByte(inner, '\\') < 0 && utf8.Valid(inner) {
		return inner
	}
	// An error tells of invalid UTF-8, which is replaced all the same.
	text, _ := jsontext.AppendUnquote(nil, literal)
	return text
}

// appendQuote appends text, which must be valid UTF-8, as a JSON string literal.
func appendQuote[T ~[]byte | ~string](dst []byte, text T) []byte {
	dst, _ = jsontext.AppendQuote(dst, text)
	return dst
}

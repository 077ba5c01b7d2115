package source

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"rebound/pipeline"
)

// decoder takes pages apart. It checks the syntax of the whole body and copies
// none of it: a page's results point into the body. Names that stand twice are
// allowed, the last one counts; so is invalid UTF-8.
type decoder struct {
	kind    pipeline.Kind
	subject string // the name of the member with the request that failed
	json    *jsontext.Decoder
	buffer  bytes.Buffer
	body    []byte
	page    pipeline.Page
}

func newDecoder(kind pipeline.Kind) *decoder {
	d := &decoder{kind: kind, subject: kind.Subject()}
	d.json = jsontext.NewDecoder(&d.buffer)
	return d
}

// decode returns the page in body, which the given token asked for. The page is
// valid until the next call. The error is errPage where the body is no page,
// cut short for instance.
func (d *decoder) decode(body []byte, token string) (*pipeline.Page, error) {
	page, err := d.decodeBody(body, token)
	if err == nil {
		return page, nil
	}
	if shallow, deep := withoutDeepResults(body); len(deep) > 0 {
		if page, err := d.decodeBody(shallow, token); err == nil {
			restore(page, body, shallow, deep)
			return page, nil
		}
	}
	return nil, err
}

func (d *decoder) decodeBody(body []byte, token string) (*pipeline.Page, error) {
	d.body = body
	d.buffer = *bytes.NewBuffer(body)
	d.json.Reset(&d.buffer, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	d.page = pipeline.Page{Token: token, TotalRecords: -1, Results: d.page.Results[:0]}
	if err := d.decodePage(); err != nil {
		return nil, fmt.Errorf("%w: %w", errPage, withoutInput(err))
	}
	return &d.page, nil
}

// forget lets go of the last page, whose memory would be kept otherwise.
func (d *decoder) forget() {
	d.body, d.buffer, d.page = nil, bytes.Buffer{}, pipeline.Page{Next: d.page.Next}
	d.json.Reset(&d.buffer)
}

// withoutInput drops what a syntax error quotes of the page: it may be
// personal.
func withoutInput(err error) error {
	var syntax *jsontext.SyntacticError
	switch {
	case errors.As(err, &syntax) && errors.Is(syntax.Err, io.ErrUnexpectedEOF):
		return fmt.Errorf("it ends after %d bytes, amid a value", syntax.ByteOffset)
	case errors.As(err, &syntax):
		return fmt.Errorf("it is no valid JSON from byte %d on", syntax.ByteOffset)
	case err == io.EOF:
		return errors.New("it is empty")
	}
	return err
}

func (d *decoder) decodePage() error {
	if kind := d.json.PeekKind(); kind != '{' && kind != 0 {
		return errors.New("it is no JSON object")
	}
	err := d.members(func(name []byte) error {
		switch string(name) {
		case "results":
			return d.decodeResults()
		case "next_page_token":
			value, err := d.json.ReadValue()
			if err != nil {
				return err
			}
			switch value.Kind() {
			case '"':
				text, err := jsontext.AppendUnquote(nil, value)
				d.page.Next = string(text)
				return err
			case 'n':
				d.page.Next = ""
				return nil
			}
			return errors.New("next_page_token is no string")
		case "total_records":
			value, err := d.json.ReadValue()
			if err != nil {
				return err
			}
			if value.Kind() == 'n' {
				d.page.TotalRecords = -1
				return nil
			}
			total, err := strconv.ParseInt(string(bytes.Trim(value, `"`)), 10, 64)
			if err != nil || total < 0 {
				return errors.New("total_records is no count")
			}
			d.page.TotalRecords = total
			return nil
		}
		return d.json.SkipValue()
	})
	if err != nil {
		return err
	}
	if _, err := d.json.ReadToken(); err != io.EOF {
		return errors.New("something follows the page")
	}
	return nil
}

// members reads an object and calls value for each name, which must read the
// member's value. The name is a literal's text, valid until then.
func (d *decoder) members(value func(name []byte) error) error {
	if _, err := d.json.ReadToken(); err != nil {
		return err
	}
	for {
		switch d.json.PeekKind() {
		case '"':
		case '}':
			_, err := d.json.ReadToken()
			return err
		default:
			// Let the decoder say what is wrong.
			_, err := d.json.ReadToken()
			if err == nil {
				err = errors.New("an object's name is no string")
			}
			return err
		}
		name, err := d.json.ReadValue()
		if err != nil {
			return err
		}
		if err := value(unquoteName(name)); err != nil {
			return err
		}
	}
}

// unquoteName returns a name's text; escapes, which the API does not use in
// names, are decoded too.
func unquoteName(literal []byte) []byte {
	if bytes.IndexByte(literal, '\\') < 0 {
		return literal[1 : len(literal)-1]
	}
	text, _ := jsontext.AppendUnquote(nil, literal)
	return text
}

func (d *decoder) decodeResults() error {
	d.page.Results = d.page.Results[:0]
	switch d.json.PeekKind() {
	case 'n':
		return d.json.SkipValue()
	case '[':
	default:
		if err := d.json.SkipValue(); err != nil {
			return err
		}
		return errors.New("results is no array")
	}
	if _, err := d.json.ReadToken(); err != nil {
		return err
	}
	for d.json.PeekKind() != ']' {
		if err := d.decodeResult(); err != nil {
			return err
		}
	}
	_, err := d.json.ReadToken()
	return err
}

func (d *decoder) decodeResult() error {
	begin := d.nextValue()
	var result pipeline.Result
	if d.json.PeekKind() != '{' {
		if err := d.json.SkipValue(); err != nil {
			return err
		}
	} else {
		result.Object = true
		err := d.members(func(name []byte) error {
			switch string(name) {
			case "code":
				return d.readString(&result.Code)
			case "message":
				return d.readString(&result.Message)
			case d.subject:
				return d.decodeSubject(&result)
			case "shared":
				if d.kind == pipeline.Events {
					begin := d.nextValue()
					err := d.json.SkipValue()
					result.Shared = d.body[begin:d.json.InputOffset()]
					return err
				}
			}
			return d.json.SkipValue()
		})
		if err != nil {
			return err
		}
	}
	result.Raw = d.body[begin:d.json.InputOffset()]
	d.page.Results = append(d.page.Results, result)
	return nil
}

// decodeSubject reads a user, or an event with its user.
func (d *decoder) decodeSubject(result *pipeline.Result) error {
	result.Subject, result.UID = nil, nil
	if d.json.PeekKind() != '{' {
		return d.json.SkipValue()
	}
	begin := d.nextValue()
	var err error
	if d.kind == pipeline.Events {
		err = d.members(func(name []byte) error {
			if string(name) == "user" {
				return d.decodeUID(result)
			}
			return d.json.SkipValue()
		})
	} else {
		err = d.decodeUID(result)
	}
	result.Subject = d.body[begin:d.json.InputOffset()]
	return err
}

// decodeUID reads a user and remembers its uid.
func (d *decoder) decodeUID(result *pipeline.Result) error {
	result.UID = nil
	if d.json.PeekKind() != '{' {
		return d.json.SkipValue()
	}
	return d.members(func(name []byte) error {
		if string(name) == "uid" {
			return d.readString(&result.UID)
		}
		return d.json.SkipValue()
	})
}

// readString points literal to the next value where that is a string, else to
// nothing.
func (d *decoder) readString(literal *[]byte) error {
	*literal = nil
	if d.json.PeekKind() != '"' {
		return d.json.SkipValue()
	}
	value, err := d.json.ReadValue()
	if err != nil {
		return err
	}
	end := d.json.InputOffset()
	*literal = d.body[end-int64(len(value)) : end]
	return nil
}

// nextValue returns where in the body the next value begins.
func (d *decoder) nextValue() int64 {
	at := d.json.InputOffset()
	for at < int64(len(d.body)) {
		switch d.body[at] {
		case ' ', '\t', '\n', '\r', ',', ':':
			at++
		default:
			return at
		}
	}
	return at
}

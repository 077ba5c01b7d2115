package source

import (
	"bytes"
	"context"

	"github.com/go-json-experiment/json/jsontext"
)

// ahead fetches pages before they are asked for. It follows the next token that
// it finds at the end of a body, without decoding the body, and stops where it
// finds none, at the last page, and at an error.
type ahead struct {
	fetched chan fetched
	bodies  *bodies
	cancel  context.CancelFunc
	done    chan struct{}
	// following is the token of the page that next returns next; empty where
	// that is not known.
	following string
}

type fetched struct {
	body body
	err  error
	next string
}

// fetchAhead begins with the page that token asks for. The size is what a page of
// the job is expected to have.
func (a *API) fetchAhead(ctx context.Context, jobID, token string, size int) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	f := &ahead{
		fetched:   make(chan fetched, 1),
		bodies:    a.bodies,
		cancel:    cancel,
		done:      make(chan struct{}),
		following: token,
	}
	go func() {
		defer close(f.done)
		for {
			var page fetched
			if page.body, page.err = a.bodies.take(ctx, size); page.err == nil {
				page.body.bytes, page.err = a.fetch(ctx, jobID, token, page.body.bytes)
			}
			if page.err == nil {
				size = max(size, len(page.body.bytes))
				if mayFetchAhead(size) {
					page.next = nextToken(page.body.bytes)
				}
			}
			select {
			case f.fetched <- page:
			case <-ctx.Done():
				a.bodies.put(page.body)
				return
			}
			if page.err != nil || page.next == "" {
				return
			}
			token = page.next
		}
	}()
	return f
}

// next returns the next page's body. It is to be put back after use, in the case
// of an error, too.
func (f *ahead) next() (body, error) {
	var page fetched
	select {
	case page = <-f.fetched:
	case <-f.done:
		select {
		case page = <-f.fetched:
		default:
			page.err = context.Canceled
		}
	}
	f.following = page.next
	return page.body, page.err
}

// stop gives up what was fetched ahead and returns once nothing is under way.
func (f *ahead) stop() {
	f.cancel()
	<-f.done
	select {
	case page := <-f.fetched:
		f.bodies.put(page.body)
	default:
	}
}

// nextToken returns the page's next token where the end of the body shows it
// without doubt: the body's last brace closes the page, so the members right
// before it, up to the first nested value, are the page's own. It is empty
// where there is no such token or it takes decoding to be sure.
func nextToken(body []byte) string {
	rest, ok := bytes.CutSuffix(bytes.TrimRight(body, " \t\r\n"), []byte("}"))
	for ok {
		rest = bytes.TrimRight(rest, " \t\r\n")
		var name, value []byte
		if rest, value, ok = cutLastScalar(rest); !ok {
			return ""
		}
		if rest, ok = bytes.CutSuffix(bytes.TrimRight(rest, " \t\r\n"), []byte(":")); !ok {
			return ""
		}
		if rest, name, ok = cutLastScalar(bytes.TrimRight(rest, " \t\r\n")); !ok {
			return ""
		}
		if string(name) == `"next_page_token"` {
			if value[0] != '"' {
				return ""
			}
			return string(value[1 : len(value)-1])
		}
		rest, ok = bytes.CutSuffix(bytes.TrimRight(rest, " \t\r\n"), []byte(","))
	}
	return ""
}

// cutLastScalar cuts a string without escapes, a number or a literal from the
// end of JSON text.
func cutLastScalar(text []byte) (rest, scalar []byte, ok bool) {
	end := len(text)
	if end == 0 {
		return nil, nil, false
	}
	if text[end-1] == '"' {
		begin := bytes.LastIndexByte(text[:end-1], '"')
		if begin < 0 || bytes.IndexByte(text[begin:], '\\') >= 0 || begin > 0 && text[begin-1] == '\\' {
			return nil, nil, false
		}
		return text[:begin], text[begin:], true
	}
	begin := end
	for begin > 0 && bytes.IndexByte([]byte("+-.0123456789Eaeflnrstu"), text[begin-1]) >= 0 {
		begin--
	}
	if begin == end || jsontext.Value(text[begin:]).Kind() == 0 {
		return nil, nil, false
	}
	return text[:begin], text[begin:], true
}

package source

import (
	"context"
	"hash/maphash"
	"iter"

	"rebound/pipeline"
)

// Pages yields the pages of a job's failures, beginning with the one that
// pageToken asks for; empty is the first. While a page is decoded and used, the
// next one is fetched. It waits while the job is processed, retries what is
// worth it, and fails with an [Error] or why it gave up. See
// [pipeline.Source].
func (a *API) Pages(ctx context.Context, jobID, pageToken string) iter.Seq2[*pipeline.Page, error] {
	return func(yield func(*pipeline.Page, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()

		seen := tokens{seed: maphash.MakeSeed()}
		seen.add(pageToken)
		decoder := newDecoder(a.kind)

		token, size := pageToken, 0
		ahead := a.fetchAhead(ctx, jobID, token, size)
		defer func() { ahead.stop() }()
		patience := a.patience(jobID, token)
		for {
			body, err := ahead.next()
			var page *pipeline.Page
			if err == nil {
				page, err = decoder.decode(body.bytes, token)
			}
			if err == nil && page.Next != "" && !seen.add(page.Next) {
				err = errRepeatedToken
			}
			if err != nil {
				// What was fetched ahead followed a page that is no good.
				ahead.stop()
				a.bodies.put(body)
				if err = patience.wait(ctx, err); err != nil {
					yield(nil, err)
					return
				}
				ahead = a.fetchAhead(ctx, jobID, token, size)
				continue
			}

			size = max(size, len(body.bytes))
			follow := func() {
				if page.Next != "" && ahead.following != page.Next {
					ahead.stop()
					ahead = a.fetchAhead(ctx, jobID, page.Next, size)
				}
			}
			if mayFetchAhead(size) {
				follow()
			}
			more := yield(page, nil)
			a.bodies.put(body)
			if !more || page.Next == "" {
				return
			}
			if !mayFetchAhead(size) {
				decoder.forget()
				body.bytes = nil
				follow()
			}
			token = page.Next
			patience = a.patience(jobID, token)
		}
	}
}

// tokens remembers which page tokens of a job were seen, as hashes: a job of
// ten million failures may have a million of them.
type tokens struct {
	seed   maphash.Seed
	hashes map[uint64]struct{}
}

// add reports whether the token is new.
func (t *tokens) add(token string) bool {
	if t.hashes == nil {
		t.hashes = make(map[uint64]struct{})
	}
	before := len(t.hashes)
	t.hashes[maphash.String(t.seed, token)] = struct{}{}
	return len(t.hashes) > before
}

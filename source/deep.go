package source

import (
	"bytes"
	"cmp"
	"slices"

	"rebound/pipeline"
)

// maxDepth is how deep a value may be nested within a page. jsontext reads 10,000
// levels, and what is published adds some.
const maxDepth = 9_900

// span is a part of a body.
type span struct{ begin, end int }

// withoutDeepResults returns a copy of the body in which each result that is
// nested too deep is null, padded with spaces so that everything stays where it
// was; and where those results are. One such result must not keep its page from
// being read. Where there are none it returns nothing.
func withoutDeepResults(body []byte) (shallow []byte, deep []span) {
	const resultLevel = 3 // in the array in the page
	depth, begin, deepest := 0, 0, 0
	for at := 0; at < len(body); at++ {
		switch body[at] {
		case '"':
			if at = endOfString(body, at); at < 0 {
				return nil, nil
			}
		case '{', '[':
			depth++
			if depth == resultLevel {
				begin, deepest = at, 0
			}
			deepest = max(deepest, depth)
		case '}', ']':
			if depth == resultLevel && deepest > maxDepth {
				deep = append(deep, span{begin, at + 1})
			}
			if depth--; depth < 0 {
				return nil, nil
			}
		}
	}
	if len(deep) == 0 {
		return nil, nil
	}
	shallow = bytes.Clone(body)
	for _, s := range deep {
		result := shallow[s.begin:s.end]
		for i := range result {
			result[i] = ' '
		}
		copy(result, "null")
	}
	return shallow, deep
}

// endOfString returns the position of the quote that ends a string; -1 where
// there is none.
func endOfString(body []byte, open int) int {
	for at := open + 1; at < len(body); at++ {
		switch body[at] {
		case '\\':
			at++
		case '"':
			return at
		}
	}
	return -1
}

// restore points the results of a page at the body that was received, and marks
// those that were left out of the one that was decoded.
func restore(page *pipeline.Page, body, shallow []byte, deep []span) {
	moved := func(part []byte) []byte {
		if part == nil {
			return nil
		}
		begin := cap(shallow) - cap(part)
		return body[begin : begin+len(part)]
	}
	for i := range page.Results {
		r := &page.Results[i]
		begin := cap(shallow) - cap(r.Raw)
		at, found := slices.BinarySearchFunc(deep, begin, func(s span, begin int) int { return cmp.Compare(s.begin, begin) })
		if found {
			*r = pipeline.Result{Raw: body[deep[at].begin:deep[at].end], Object: body[deep[at].begin] == '{', TooDeep: true}
			continue
		}
		for _, part := range []*[]byte{&r.Raw, &r.Code, &r.Message, &r.Subject, &r.Shared, &r.UID} {
			*part = moved(*part)
		}
	}
}

package simulator

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// What the failures of conjured jobs are like. Everything about the failure at
// position i follows from the job's seed and i.

var causes = []struct{ code, message string }{
	{"required_field", "uid is required"},
	{"invalid_email", "email is not a valid address"},
	{"Property Too Large", "  the value of  properties.bio \\t exceeds 8192 bytes "},
	{"TypeConflict", "properties.age was a number before"},
	{"invalid_property_name", "property names begin with a letter: \\u00fcber"},
	{"user-deleted", "this user was deleted on request"},
}

var names = []string{"Ada Lovelace", "Grace Hopper", "Søren Ängström", "张伟", "محمد علي", "Zoë 🦊 \\ud83e\\udd8a", "O\\\"Brien\\\\", "a\\u0000b\\u2028c"}

// odd are properties that a careless program would change.
var odd = []string{
	`"big":12345678901234567890,"huge":1e400,"tiny":-0.0,"exact":1.10`,
	`"nested":{"a":{"b":[1,[2,[3,{"c":null}]]]}},"empty":{},"list":[]`,
	`"same":1,"same":2,"lone":"\ud800","slash":"\/","tab":"\t"`,
	"\"spaced\" : [ 1 ,\t2 ,\n 3 ] , \"emoji\":\"👩‍👩‍👧‍👦\",\"rtl\":\"\u202eabc\"",
	`"plan":"enterprise","seats":42,"trial":false,"ratio":0.30000000000000004`,
	"\"broken\":\"\xff\xfe caf\xe9\",\"nul\":\"\\u0000\"",
}

func (j *conjuredJob) appendFailure(dst []byte, i int64) []byte {
	if j.Plain {
		return j.appendPlain(dst, i)
	}
	h := mix(j.seed + uint64(i))
	if float64(mix(h)>>11)/(1<<53) < j.garbage {
		garbage := j.appendGarbage(nil, i, h>>8)
		if j.Kind == Events {
			garbage = bytes.ReplaceAll(garbage, []byte(`"user":`), []byte(`"event":`))
		}
		return append(dst, garbage...)
	}
	cause := causes[h%uint64(len(causes))]
	dst = append(dst, `{"message":"`...)
	dst = append(dst, cause.message...)
	dst = append(dst, `","code":"`...)
	dst = append(dst, cause.code...)
	if j.Kind == Events {
		return j.appendEvent(dst, i, h)
	}
	dst = append(dst, `","user":`...)
	dst = j.appendUser(dst, i, h)
	return append(dst, '}')
}

// appendEvent appends the rest of a result: an event that may have a user, and
// what the import's events share.
func (j *conjuredJob) appendEvent(dst []byte, i int64, h uint64) []byte {
	dst = append(dst, `","event":{"name":"Order Completed","timestamp":"2026-01-02T03:04:05.678Z"`...)
	switch h >> 8 % 10 {
	case 0: // nobody's
	case 1:
		dst = append(dst, `,"session":{"id":"s:1","use_most_recent":true}`...)
	default:
		dst = append(dst, `,"user":{"uid":"user-`...)
		dst = strconv.AppendUint(dst, (h>>16)%uint64(max(j.Failures/3, 1)), 10)
		dst = append(dst, `"}`...)
	}
	dst = append(dst, `,"properties":{"index":`...)
	dst = strconv.AppendInt(dst, i, 10)
	dst = append(dst, ',')
	dst = append(dst, odd[h>>32%uint64(len(odd))]...)
	dst = append(dst, `}}`...)
	if h>>40%4 != 0 {
		dst = append(dst, `,"shared": {"context":{"device":{"manufacturer":"Acme"}, "n":1e400}}`...)
	}
	return append(dst, '}')
}

func (j *conjuredJob) appendUser(dst []byte, i int64, h uint64) []byte {
	dst = append(dst, '{')
	if h>>8%10 != 0 {
		dst = append(dst, `"uid":"user-`...)
		dst = strconv.AppendUint(dst, (h>>16)%uint64(max(j.Failures/3, 1)), 10)
		dst = append(dst, `",`...)
	}
	dst = append(dst, `"display_name":"`...)
	dst = append(dst, names[h>>24%uint64(len(names))]...)
	dst = append(dst, `","email":"user`...)
	dst = strconv.AppendInt(dst, i, 10)
	dst = append(dst, `@example.com","properties":{"index":`...)
	dst = strconv.AppendInt(dst, i, 10)
	dst = append(dst, ',')
	dst = append(dst, odd[h>>32%uint64(len(odd))]...)
	return append(dst, `}}`...)
}

// appendGarbage appends a result that cannot be a failed user, or hardly.
func (j *conjuredJob) appendGarbage(dst []byte, i int64, h uint64) []byte {
	position := strconv.FormatInt(i, 10)
	switch h % 12 {
	case 0:
		return append(dst, `null`...)
	case 1:
		return append(dst, `"just a string, at `+position+`"`...)
	case 2:
		return append(dst, `[1,2,`+position+`]`...)
	case 3:
		return append(dst, position...)
	case 4:
		return append(dst, `{"message":"no user at all","code":"internal","at":`+position+`}`...)
	case 5:
		return append(dst, `{"message":"user is null","code":"internal","user":null}`...)
	case 6:
		return append(dst, `{"message":"user is a list","code":"internal","user":["a","b"]}`...)
	case 7: // fine, but for code and message
		return append(dst, `{"message":17,"code":["x"],"user":{"uid":"odd-`+position+`"}}`...)
	case 8:
		return append(dst, `{"user":{"uid":42,"n":`+strings.Repeat("9", 400)+`}}`...)
	case 9:
		return append(dst, `{"code":"a","code":"Twice Given","user":{"uid":"x"},"user":{"uid":"last","uid":"wins"},"message":"m"}`...)
	case 10: // larger than a topic takes by default
		return appendLarge(dst, i, 4<<20)
	default: // large, and yet small enough
		return appendLarge(dst, i, 900<<10)
	}
}

func appendLarge(dst []byte, i int64, size int) []byte {
	dst = append(dst, `{"message":"too much","code":"too_large","user":{"uid":"large-`...)
	dst = strconv.AppendInt(dst, i, 10)
	dst = append(dst, `","properties":{`...)
	for p, begin := 0, len(dst); len(dst)-begin < size; p++ {
		if p > 0 {
			dst = append(dst, ',')
		}
		dst = fmt.Appendf(dst, `"p%d":"`, p)
		for word := range 1000 {
			dst = strconv.AppendUint(dst, mix(uint64(i)<<32+uint64(p*1000+word))%1000, 10)
			dst = append(dst, ' ')
		}
		dst = append(dst, '"')
	}
	return append(dst, `}}}`...)
}

// appendPlain appends a failure of the job's record size.
func (j *conjuredJob) appendPlain(dst []byte, i int64) []byte {
	begin := len(dst)
	h := mix(j.seed + uint64(i))
	cause := &causes[h%2]
	dst = append(dst, `{"message":"`...)
	dst = append(dst, cause.message...)
	dst = append(dst, `","code":"`...)
	dst = append(dst, cause.code...)
	dst = append(dst, `","user":{"uid":"user-`...)
	dst = strconv.AppendInt(dst, i, 10)
	dst = append(dst, `","display_name":"Ada Lovelace","email":"user`...)
	dst = strconv.AppendInt(dst, i, 10)
	dst = append(dst, `@example.com","properties":{"plan":"enterprise","seats":`...)
	dst = strconv.AppendUint(dst, h>>40, 10)
	dst = append(dst, `,"signed_up":"2026-01-02T03:04:05Z","note":"`...)
	size := j.RecordBytes
	if size == 0 {
		size = 530
	}
	for word := h; len(dst)-begin < size-5; {
		word = mix(word)
		dst = append(dst, words[word%uint64(len(words))]...)
		dst = append(dst, ' ')
	}
	return append(dst, `"}}}`...)
}

var words = strings.Fields("lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna aliqua enim minim veniam quis nostrud exercitation ullamco laboris nisi aliquip ex ea commodo consequat")

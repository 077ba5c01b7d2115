package pipeline_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"rebound/pipeline"
)

// result is a result as the source takes it apart.
func result(code, message, user, uid string) pipeline.Result {
	literal := func(text string) []byte {
		if text == "" {
			return nil
		}
		return []byte(text)
	}
	raw := fmt.Sprintf(`{"code":%s,"message":%s,"user":%s}`, code, message, user)
	return pipeline.Result{Raw: []byte(raw), Object: true, Code: literal(code), Message: literal(message), Subject: literal(user), UID: literal(uid)}
}

var generous = pipeline.Limits{Failure: 1 << 20, DeadLetter: 1 << 20}

func transform(limits pipeline.Limits, index, skip int64, results ...pipeline.Result) *pipeline.Batch {
	var b pipeline.Batch
	b.Transform(pipeline.NewRun(pipeline.Form{}, `a/b"=`, 3), &pipeline.Page{Results: results}, 0, index, skip, limits)
	return &b
}

func headers(m pipeline.Message) string {
	var list []string
	for _, h := range m.Headers {
		list = append(list, h.Name+": "+string(h.Value))
	}
	return strings.Join(list, "; ")
}

func TestAFailedUserAsItsConsumerGetsIt(t *testing.T) {
	b := transform(generous, 17, 0, result(`"Required Field"`, `" uid  is required"`, `{"uid":"u 1", "n":1e400}`, `"u 1"`))
	m := b.Messages[0]
	if m.Topic != pipeline.Failures || string(m.Key) != "u 1" {
		t.Errorf("topic %v, key %q", m.Topic, m.Key)
	}
	if want := `{"job_id":"a/b\"=","index":17,"code":"required_field","message":"uid is required","user":{"uid":"u 1","n":1e400}}`; string(m.Value) != want {
		t.Errorf("value\n%s, want\n%s", m.Value, want)
	}
	if got, want := headers(m), `job: a/b"=; code: required_field; id: a/b"=/17; run: 3; content-type: application/json; schema: rebound.failed-user.v1`; got != want {
		t.Errorf("headers\n%s, want\n%s", got, want)
	}
	if b.Failures != 1 || b.DeadLetters != 0 || b.End != 18 {
		t.Errorf("counts %d and %d, end %d", b.Failures, b.DeadLetters, b.End)
	}
}

func TestTheKeyIsTheUIDOrElseTheJob(t *testing.T) {
	for _, c := range []struct{ name, uid, want string }{
		{"a uid", `"u"`, "u"},
		{"a uid with escapes", `"\u00fc\n"`, "ü\n"},
		{"an empty uid", `""`, `a/b"=`},
		{"no uid, or one that is no string", "", `a/b"=`},
	} {
		if m := transform(generous, 0, 0, result(`"c"`, `"m"`, `{}`, c.uid)).Messages[0]; string(m.Key) != c.want {
			t.Errorf("%s: key %q, want %q", c.name, m.Key, c.want)
		}
	}
}

func TestWhatIsNoFailedUserBecomesADeadLetter(t *testing.T) {
	for _, c := range []struct {
		name   string
		result pipeline.Result
		reason string
	}{
		{"a number", pipeline.Result{Raw: []byte(`17`)}, "not_an_object"},
		{"an object without a user", pipeline.Result{Raw: []byte(`{ "user":null}`), Object: true}, "no_user"},
		{"invalid UTF-8 stays", pipeline.Result{Raw: []byte("\"\xff\"")}, "not_an_object"},
	} {
		b := transform(generous, 5, 0, c.result)
		m := b.Messages[0]
		if m.Topic != pipeline.DeadLetters || string(m.Key) != `a/b"=` || !bytes.Equal(m.Value, c.result.Raw) || b.DeadLetters != 1 || b.Failures != 0 {
			t.Errorf("%s: %+v", c.name, m)
		}
		if got, want := headers(m), `job: a/b"=; id: a/b"=/5; run: 3; reason: `+c.reason; got != want {
			t.Errorf("%s: headers %s, want %s", c.name, got, want)
		}
	}
}

func TestWhatIsTooLargeIsSplitAndJoinsAgain(t *testing.T) {
	limits := pipeline.Limits{Failure: 2000, DeadLetter: 1000}
	big := result(`"c"`, `"m"`, `{"uid":"u","x":"`+strings.Repeat("0123456789", 1000)+`"}`, `"u"`)
	b := transform(limits, 0, 0, result(`"c"`, `"m"`, `{}`, ""), big, result(`"c"`, `"m"`, `{}`, ""))
	if b.Failures != 2 || b.DeadLetters != 1 {
		t.Fatalf("%d failures, %d dead letters", b.Failures, b.DeadLetters)
	}
	var joined []byte
	parts := b.Messages[1 : len(b.Messages)-1]
	for i, m := range parts {
		if size := m.Size(); size > limits.DeadLetter {
			t.Errorf("part %d has %d bytes, %d are allowed", i, size, limits.DeadLetter)
		}
		if want := fmt.Sprintf("reason: too_large; part: %d; parts: %d", i+1, len(parts)); !strings.HasSuffix(headers(m), want) {
			t.Errorf("part %d has headers %s, want …%s", i, headers(m), want)
		}
		joined = append(joined, m.Value...)
	}
	if !bytes.Equal(joined, big.Raw) {
		t.Error("the parts do not join to what was received")
	}
}

func TestWhatWasPublishedEarlierIsLeftOut(t *testing.T) {
	b := transform(generous, 10, 12, result(`"c"`, `"m"`, `{}`, ""), pipeline.Result{Raw: []byte("1")}, result(`"c"`, `"m"`, `{}`, ""))
	if len(b.Messages) != 1 || b.Failures != 1 || b.DeadLetters != 0 || b.End != 13 || !strings.Contains(headers(b.Messages[0]), "/12;") {
		t.Errorf("got %d messages, %d failures, %d dead letters", len(b.Messages), b.Failures, b.DeadLetters)
	}
}

func TestALargePageIsManyBatches(t *testing.T) {
	page := &pipeline.Page{Next: "next", TotalRecords: 99}
	for i := range 10 {
		page.Results = append(page.Results, result(`"c"`, `"m"`, fmt.Sprintf(`{"n":%d,"x":"%s"}`, i, strings.Repeat("x", 40<<10)), ""))
	}
	var b pipeline.Batch
	batches, messages := 0, 0
	for from := 0; from < len(page.Results); batches++ {
		from = b.Transform(pipeline.NewRun(pipeline.Form{}, "job", 1), page, from, 50, 0, generous)
		for _, m := range b.Messages {
			if want := fmt.Sprintf(`"index":%d,`, 50+messages); !strings.Contains(string(m.Value), want) {
				t.Errorf("message %d does not say %s", messages, want)
			}
			messages++
		}
		if ends := from == len(page.Results); b.EndsPage != ends || b.End != int64(50+from) || b.Page.Next != "next" {
			t.Errorf("after %d results: ends page %v, end %d", from, b.EndsPage, b.End)
		}
	}
	if batches != 3 || messages != 10 { // of 4, 4 and 2
		t.Errorf("%d batches, %d messages", batches, messages)
	}
}

func TestABatchUsesItsMemoryAgain(t *testing.T) {
	page := &pipeline.Page{}
	for range 1000 {
		page.Results = append(page.Results, result(`"required_field"`, `"uid is required"`, `{"uid":"user-1","email":"a@example.com"}`, `"user-1"`))
	}
	var b pipeline.Batch
	run := pipeline.NewRun(pipeline.Form{}, "job", 1)
	transform := func() {
		for from := 0; from < len(page.Results); {
			from = b.Transform(run, page, from, 0, 0, generous)
		}
	}
	transform()
	if allocations := testing.AllocsPerRun(10, transform); allocations > 0 {
		t.Errorf("%v allocations a page", allocations)
	}
}

func ExampleBatch_Transform() {
	page := &pipeline.Page{Results: []pipeline.Result{{
		Object:  true,
		Raw:     []byte(`{"message":"uid is required","code":"Required Field","user":{"email":"ada@example.com"}}`),
		Code:    []byte(`"Required Field"`),
		Message: []byte(`"uid is required"`),
		Subject: []byte(`{"email":"ada@example.com"}`),
	}}}
	var batch pipeline.Batch
	batch.Transform(pipeline.NewRun(pipeline.Form{}, "abd123=", 1), page, 0, 0, 0, pipeline.Limits{Failure: 1 << 20, DeadLetter: 1 << 20})
	for _, m := range batch.Messages {
		fmt.Printf("%s %s\n", m.Key, m.Value)
	}
	// Output: abd123= {"job_id":"abd123=","index":0,"code":"required_field","message":"uid is required","user":{"email":"ada@example.com"}}
}

func BenchmarkTransform(b *testing.B) { benchmarkTransform(b, pipeline.Form{}) }

func benchmarkTransform(b *testing.B, form pipeline.Form) {
	page := &pipeline.Page{}
	for range 1000 {
		page.Results = append(page.Results, result(`"required_field"`, `"uid is required"`,
			`{"uid":"user-1","email":"a@example.com","properties":{"note":"`+strings.Repeat("lorem ipsum ", 35)+`"}}`, `"user-1"`))
	}
	var batch pipeline.Batch
	run := pipeline.NewRun(form, "job", 1)
	b.ReportAllocs()
	for b.Loop() {
		for from := 0; from < len(page.Results); {
			from = batch.Transform(run, page, from, 0, 0, generous)
		}
	}
}

package simulator

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fault is a way to go wrong.
type Fault string

// The faults of an answer. Garbage is one of a job's content: results that are
// no failed users, and unusual ones.
const (
	Slow        Fault = "latency"   // the answer takes a while
	RateLimited Fault = "429"       // with Retry-After, in either form, or without
	Internal    Fault = "500"       // with the API's own error
	Unavailable Fault = "503"       // with a proxy's HTML
	Cut         Fault = "cut"       // the connection is cut before the answer
	Truncated   Fault = "truncated" // the body ends early
	Trickle     Fault = "slow-body" // the body comes in small pieces
	HTML        Fault = "html"      // 200, with a proxy's HTML
	Empty       Fault = "empty"     // no results, but a next page
	Repeated    Fault = "repeated"  // the next token leads back
	Garbage     Fault = "garbage"
)

// Faults holds the probability of each fault, from 0 to 1.
type Faults map[Fault]float64

var allFaults = []Fault{Slow, RateLimited, Internal, Unavailable, Cut, Truncated, Trickle, HTML, Empty, Repeated, Garbage}

// ParseFaults reads a list such as "429=0.05,cut=0.01"; all=0.02 stands for every
// fault.
func ParseFaults(list string) (Faults, error) {
	faults := make(Faults)
	for item := range strings.SplitSeq(list, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		name, value, ok := strings.Cut(item, "=")
		probability, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil || probability < 0 || probability > 1 {
			return nil, fmt.Errorf("%q: write a fault as name=probability, from 0 to 1", item)
		}
		switch {
		case name == "all":
			for _, fault := range allFaults {
				faults[fault] = probability
			}
		case slices.Contains(allFaults, Fault(name)):
			faults[Fault(name)] = probability
		default:
			return nil, fmt.Errorf("there is no fault %q; write all or some of %v", name, allFaults)
		}
	}
	return faults, nil
}

// String lists the faults as ParseFaults reads them.
func (f Faults) String() string {
	var items []string
	for _, fault := range slices.Sorted(maps.Keys(f)) {
		items = append(items, fmt.Sprintf("%s=%v", fault, f[fault]))
	}
	return strings.Join(items, ",")
}

// requestFaults decides what goes wrong with one request. The decision depends
// on the seed, the page and how often the page was asked for, not on what else
// goes on.
type requestFaults struct {
	faults Faults
	key    uint64
	try    int
}

func (s *Simulator) faults(jobID, token string) *requestFaults {
	if len(s.options.Faults) == 0 {
		return &requestFaults{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	page := jobID + "\x00" + token
	s.attempts[page]++
	hash := fnv.New64a()
	hash.Write([]byte(page))
	return &requestFaults{s.options.Faults, hash.Sum64() ^ mix(s.options.Seed), s.attempts[page]}
}

func (f *requestFaults) strikes(fault Fault) bool {
	probability := f.faults[fault]
	return probability > 0 && f.random(string(fault)) < probability
}

// random returns a number from 0 to 1 for the purpose.
func (f *requestFaults) random(purpose string) float64 {
	hash := fnv.New64a()
	hash.Write([]byte(purpose))
	return float64(mix(f.key^hash.Sum64()^mix(uint64(f.try)))>>11) / (1 << 53)
}

// beforeBody plays the faults that come instead of a page, and tells whether
// there was one.
func (f *requestFaults) beforeBody(w http.ResponseWriter) bool {
	if f.strikes(Slow) {
		time.Sleep(time.Duration(f.random("how slow") * float64(300*time.Millisecond)))
	}
	switch {
	case f.strikes(RateLimited):
		switch how := f.random("retry-after"); {
		case how < 0.4:
			w.Header().Set("Retry-After", "1")
		case how < 0.8:
			w.Header().Set("Retry-After", time.Now().Add(time.Second).UTC().Format(http.TimeFormat))
		}
		writeError(w, http.StatusTooManyRequests, "too_many_requests", "Rate limit exceeded")
	case f.strikes(Internal):
		writeError(w, http.StatusInternalServerError, "internal_error", "Something went wrong")
	case f.strikes(Unavailable):
		writeHTML(w, http.StatusServiceUnavailable)
	case f.strikes(HTML):
		writeHTML(w, http.StatusOK)
	case f.strikes(Cut):
		panic(http.ErrAbortHandler)
	default:
		return false
	}
	return true
}

func writeHTML(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<html><head><title>%d</title></head><body><h1>%[1]d %s</h1><hr>proxy</body></html>\n", status, http.StatusText(status))
}

// write writes a page, or what the faults leave of it.
func (f *requestFaults) write(w http.ResponseWriter, page []byte) {
	switch {
	case f.strikes(Truncated):
		w.Write(page[:int(f.random("where")*float64(len(page)))])
		panic(http.ErrAbortHandler)
	case f.strikes(Trickle):
		const pieces = 10
		for piece := range pieces {
			w.Write(page[piece*len(page)/pieces : (piece+1)*len(page)/pieces])
			http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Millisecond)
		}
	default:
		w.Write(page)
	}
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// report measures everything and writes it down.
func (b bench) report(s setting, folder string) error {
	var page strings.Builder
	fmt.Fprintf(&page, "Measured on %s, %d cores of one %s machine that API, broker and program share; %s. `make bench` does it again.\n\n",
		time.Now().Format(time.DateOnly), runtime.NumCPU(), runtime.GOARCH, versions())

	for _, latency := range []time.Duration{0, 5 * time.Millisecond, 20 * time.Millisecond} {
		at := s
		at.latency = latency
		names := contenders
		if latency > 0 {
			at.rounds = min(at.rounds, 3)
		}
		r, err := b.measureAll(at, names)
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s\n", r.table())
		fmt.Fprintf(&page, "### %v a page\n\n%s\n", latency, r.table())
		if latency == 0 {
			if err := os.WriteFile(filepath.Join(folder, "performance.svg"), []byte(r.plot()), 0o644); err != nil {
				return err
			}
			page.WriteString("![records per second](performance.svg)\n\n")
		}
	}
	page.WriteString("### How it grows\n\nrebound, exactly once, against the bare fetch of the same pages.\n\n")
	page.WriteString("| | records/s | MB/s | wall time, bare fetch = 1 | CPU s a million records | peak memory |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, v := range variations(s) {
		r, err := b.measureAll(v.setting, []string{bareFetch, exactlyOnce})
		if err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
		f := r.figures(exactlyOnce)
		line := fmt.Sprintf("| %s | %.1f k | %.0f | %.2f | %.2f | %.0f MiB |\n", v.name, f.recordsPerSecond/1000,
			f.recordsPerSecond*float64(v.recordBytes)/1e6, f.ofFetch, f.cpuPerMillion, f.peakMiB)
		fmt.Fprint(os.Stderr, line)
		page.WriteString(line)
	}
	return replaceBetween(filepath.Join(folder, "performance.md"), "<!-- measured: written by make bench -->\n", "<!-- end of measured -->", page.String())
}

type variation struct {
	name string
	setting
}

// variations are settings that differ from s in one thing each. None takes long.
func variations(s setting) (list []variation) {
	s.rounds = 3
	vary := func(name string, change func(*setting)) {
		v := s
		change(&v)
		list = append(list, variation{name, v})
	}
	for _, n := range []int{200, 530, 2000, 10_000, 100_000} {
		vary(fmt.Sprintf("%d bytes a record", n), func(v *setting) {
			v.recordBytes, v.failures = n, min(200_000, 200_000_000/n)
			v.pageSize = min(1000, 10_000_000/n)
		})
	}
	for _, n := range []int{10, 100, 1000, 10_000} {
		vary(fmt.Sprintf("%d records a page", n), func(v *setting) { v.pageSize, v.failures = n, min(200_000, 2000*n) })
	}
	for _, d := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond} {
		vary(fmt.Sprintf("%v a page", d), func(v *setting) { v.latency, v.failures = d, min(200_000, int(5*time.Second/d)*1000) })
	}
	for _, n := range []int{1, 6, 60} {
		vary(fmt.Sprintf("%d partitions", n), func(v *setting) { v.partitions = n })
	}
	for _, n := range []int{1, 10, 100} {
		vary(fmt.Sprintf("%d jobs at once", n), func(v *setting) { v.jobs, v.failures = n, 400_000 })
	}
	for _, codec := range []string{"none", "lz4", "snappy", "gzip", "zstd"} {
		vary(codec, func(v *setting) { v.codec = codec })
	}
	return list
}

// versions names Go and the modules that count.
func versions() string {
	text := runtime.Version()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			switch module.Path {
			case "github.com/segmentio/kafka-go", "github.com/twmb/franz-go":
				text += fmt.Sprintf(", %s %s", filepath.Base(module.Path), module.Version)
			}
		}
	}
	return text
}

// plot draws the records per second of those that publish, as bars.
func (r *results) plot() string {
	const left, width, bar, gap = 190, 460, 26, 12
	var svg strings.Builder
	height := 40 + (bar+gap)*(len(r.names)-1) + 10
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 %d" font-family="sans-serif" font-size="14" role="img" aria-label="Records per second">`+"\n", height)
	fmt.Fprintf(&svg, `<rect width="760" height="%d" fill="#ffffff"/><text x="%d" y="24" font-weight="bold" fill="#222222">records per second, 0 ms a page, lz4</text>`+"\n", height, left)
	most := 0.0
	for _, name := range r.names {
		if name != bareFetch {
			most = max(most, r.figures(name).recordsPerSecond)
		}
	}
	y := 40
	for _, name := range r.names {
		if name == bareFetch {
			continue
		}
		value := r.figures(name).recordsPerSecond
		color := "#8a8f98"
		if strings.HasPrefix(name, "rebound") {
			color = "#0b6e4f"
		}
		fmt.Fprintf(&svg, `<text x="%d" y="%d" text-anchor="end" fill="#222222">%s</text><rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/><text x="%.0f" y="%d" fill="#222222">%.0f k</text>`+"\n",
			left-10, y+18, name, left, y, width*value/most, bar, color, left+width*value/most+8, y+18, value/1000)
		y += bar + gap
	}
	svg.WriteString("</svg>\n")
	return svg.String()
}

// replaceBetween replaces what stands between two marks in a file.
func replaceBetween(file, begin, end, text string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(old), begin)
	_, after, alsoFound := strings.Cut(rest, end)
	if !found || !alsoFound {
		return fmt.Errorf("%s has no place for the figures", file)
	}
	return os.WriteFile(file, []byte(before+begin+text+end+after), 0o644)
}

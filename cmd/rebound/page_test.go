package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"rebound/internal/simulator"
)

// browser returns a headless Chromium, or skips the test where there is none;
// .ci/run installs one.
func browser(t *testing.T) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		if os.Getenv("REBOUND_BROWSER") == "required" {
			t.Fatal("there is no Chromium")
		}
		t.Skip("needs Chromium; .ci/run installs it")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox)
	allocator, stop := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(stop)
	ctx, stop := chromedp.NewContext(allocator)
	t.Cleanup(stop)
	if err := chromedp.Do(ctx); err != nil { // starts it, without a time-out
		t.Fatal(err)
	}
	ctx, stop = context.WithTimeout(ctx, 4*time.Minute)
	t.Cleanup(stop)
	return ctx
}

// do runs steps in the browser.
func do(t *testing.T, ctx context.Context, what string, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// eval returns what an expression is in the page.
func eval[T any](t *testing.T, ctx context.Context, expression string, options ...chromedp.EvaluateOption) T {
	t.Helper()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, options...))
	if err != nil {
		t.Fatalf("%.100s: %v", expression, err)
	}
	return value
}

// text returns the visible text of an element; empty where there is none.
func text(t *testing.T, ctx context.Context, selector string) string {
	t.Helper()
	return eval[string](t, ctx, fmt.Sprintf(`document.querySelector(%q)?.innerText ?? ""`, selector))
}

// screens are the sizes and the colours that the page is looked at in.
var screens = []struct {
	name          string
	width, height int64
	scheme        string
}{
	{"desktop-light", 1280, 900, "light"},
	{"desktop-dark", 1280, 900, "dark"},
	{"phone-light", 390, 844, "light"},
	{"phone-dark", 390, 844, "dark"},
}

func (s *instance) look(t *testing.T, ctx context.Context, width, height int64, scheme string) {
	t.Helper()
	do(t, ctx, "open the page",
		chromedp.EmulateViewport(width, height),
		chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
			return err
		}),
		chromedp.Navigate(s.url+"/"),
		chromedp.WaitVisible("#running-title"),
	)
}

// TestThePageIsAlive watches a job in a real browser: the numbers grow without the
// page being loaded again, and the job is seen to end.
func TestThePageIsAlive(t *testing.T) {
	t.Parallel()
	ctx := browser(t)
	w := newWorld(t, simulator.Options{Latency: 40 * time.Millisecond})
	w.conjure("watched/+=", 10_000, 50)
	w.api.Conjure(simulator.Conjured{ID: "slow=", Failures: 10, Processing: time.Hour})
	i := w.serve("COMMIT_INTERVAL=200ms")
	i.submit(false, "watched/+=", "slow=", "nosuch=")
	i.awaitState(60*time.Second, "nosuch=", 0, "failed")
	i.look(t, ctx, 1280, 900, "light")
	eval[bool](t, ctx, `window.loadedOnce = true`)

	records := regexp.MustCompile(`([\d,]+) of ([\d,]+)`)
	seen := []string{}
	await(t, 60*time.Second, "numbers that grow", func() bool {
		if found := records.FindString(text(t, ctx, "#running tbody")); found != "" && (len(seen) == 0 || found != seen[len(seen)-1]) {
			seen = append(seen, found)
		}
		return len(seen) >= 4
	})
	t.Logf("seen: %q", seen)
	if parked := text(t, ctx, "#parked"); !strings.Contains(parked, "slow=") || !strings.Contains(parked, "still processes") {
		t.Errorf("parked: %q", parked)
	}
	if ended := text(t, ctx, "#ended"); !strings.Contains(ended, "nosuch=") || !strings.Contains(ended, "404") {
		t.Errorf("ended: %q", ended)
	}
	if codes := text(t, ctx, "#codes"); !strings.Contains(codes, "required_field") {
		t.Errorf("codes: %q", codes)
	}
	await(t, 60*time.Second, "the job's end on the page", func() bool {
		return regexp.MustCompile(`watched/\+=\s+done`).MatchString(text(t, ctx, "#ended"))
	})
	if !eval[bool](t, ctx, `window.loadedOnce === true`) {
		t.Error("the page was loaded again")
	}
	i.kill()
	await(t, 60*time.Second, "a word that the connection is gone", func() bool { return strings.Contains(text(t, ctx, "#offline"), "Not connected") })
}

// TestThePageIsForEveryone looks at the page on several screens: nothing is cut
// off, axe-core (REBOUND_AXE names its axe.min.js) finds nothing, and it works
// without JavaScript. REBOUND_SCREENSHOTS is a folder to keep screenshots in.
func TestThePageIsForEveryone(t *testing.T) {
	t.Parallel()
	ctx := browser(t)
	w := newWorld(t, simulator.Options{Latency: 50 * time.Millisecond})
	for n, size := range []int64{40_000, 12_000, 3_000} {
		w.conjure(fmt.Sprintf("import-%d=", n), size, 50)
	}
	w.conjure("bmlnaHRseS1zeW5jLW9mLXRoZS1jcm0tZnJvbS10aGUtd2FyZWhvdXNlLXdpdGgtYS1sb25nLWlk=", 200, 50)
	w.api.Conjure(simulator.Conjured{ID: "processing=", Failures: 10, Processing: time.Hour})
	w.api.Conjure(simulator.Conjured{ID: "claims-more=", Failures: 40, Claimed: 50})
	i := w.serve("JOB_CONCURRENCY=3", "COMMIT_INTERVAL=200ms", "FULLSTORY_RATE_LIMIT=60")
	i.submit(false, "nosuch=", "claims-more=", "processing=", "bmlnaHRseS1zeW5jLW9mLXRoZS1jcm0tZnJvbS10aGUtd2FyZWhvdXNlLXdpdGgtYS1sb25nLWlk=")
	i.awaitState(60*time.Second, "claims-more=", 1, "incomplete")
	i.awaitState(60*time.Second, "nosuch=", 0, "failed")
	i.submit(false, "import-0=", "import-1=", "import-2=", "waiting-0=", "waiting-1=")
	await(t, 60*time.Second, "jobs that run", func() bool { return i.job("import-0=").Published > 1000 })

	axe, err := os.ReadFile(os.Getenv("REBOUND_AXE"))
	if err != nil && os.Getenv("REBOUND_AXE") != "" {
		t.Fatal(err)
	}
	for _, s := range screens {
		t.Run(s.name, func(t *testing.T) {
			i.look(t, ctx, s.width, s.height, s.scheme)
			time.Sleep(1500 * time.Millisecond) // the browser's own time: an update is taken over
			if wider := eval[int](t, ctx, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); wider > 0 {
				t.Errorf("the page is %d pixels wider than the screen", wider)
			}
			if len(axe) > 0 {
				eval[int](t, ctx, string(axe)+`;0`)
				found := eval[[]string](t, ctx, `axe.run().then(r => r.violations.map(v => v.id + ": " + v.nodes.map(n => n.html).join(" ")))`, chromedp.EvalAwaitPromise)
				for _, violation := range found {
					t.Errorf("axe-core: %.500s", violation)
				}
			}
			if folder := os.Getenv("REBOUND_SCREENSHOTS"); folder != "" {
				image, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(folder, "status-"+s.name+".png"), image, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	t.Run("by keyboard", func(t *testing.T) {
		i.look(t, ctx, 1280, 900, "light")
		var reached []string
		for range 4 {
			do(t, ctx, "press Tab", chromedp.KeyEvent("\t"))
			reached = append(reached, eval[string](t, ctx, `document.activeElement.innerText`))
		}
		if reached[0] != "Skip to the jobs" || !strings.Contains(strings.Join(reached, " "), "import-") {
			t.Errorf("reached: %q", reached)
		}
	})
	t.Run("without JavaScript", func(t *testing.T) {
		do(t, ctx, "switch JavaScript off", chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
			return err
		}))
		i.look(t, ctx, 1280, 900, "light")
		if shown := text(t, ctx, "#running"); !strings.Contains(shown, "import-0=") {
			t.Errorf("running: %q", shown)
		}
	})
}

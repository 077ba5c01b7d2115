// Package memory watches the memory of other processes, for tests and
// benchmarks.
package memory

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// Peak returns the peak resident memory of a process, in bytes, once it has
// ended. What the operating system says at the end counts the parent's, too.
func Peak(pid int) <-chan int64 {
	result := make(chan int64, 1)
	go func() {
		var peak int64
		for {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				result <- peak
				return
			}
			if _, after, found := strings.Cut(string(status), "VmHWM:"); found {
				var kilobytes int64
				fmt.Sscan(after, &kilobytes)
				peak = max(peak, kilobytes<<10)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return result
}

//go:build unix

package main

import "syscall"

// withoutCore keeps the system from writing the process's memory, which holds
// users and keys, to a file when it crashes. Where that fails nothing changes.
func withoutCore() {
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
}

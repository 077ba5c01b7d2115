//go:build !unix

package main

// withoutCore has nothing to do: only Unix writes cores.
func withoutCore() {}

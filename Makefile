.PHONY: build test ci

build:
	go build ./cmd/rebound

test:
	go test ./...

ci:
	.ci/run

# Takes some minutes and writes docs/performance.md and docs/performance.svg.
.PHONY: bench
bench:
	go run ./internal/bench -write docs

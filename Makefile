.PHONY: build test ci

build:
	go build ./cmd/rebound

test:
	go test ./...

ci:
	.ci/run

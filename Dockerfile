# syntax=docker/dockerfile:1
FROM golang:1.26.10-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=devel
ARG COMMIT=unknown
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION} -X main.commit=${COMMIT}" -o /rebound ./cmd/rebound

# Nothing but the static binary and the certificates to trust, run by a user that is not root.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /rebound /rebound
USER 65532:65532
# A run ends by itself and tells by its exit status how it went, so there is nothing to probe.
HEALTHCHECK NONE
ENTRYPOINT ["/rebound"]
CMD ["--help"]

package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"rebound/config"
)

// tracer returns what makes spans, and what sends the last of them off. It makes
// none unless OpenTelemetry's own variables ask for it; the exporter reads
// OTEL_EXPORTER_OTLP_* and the SDK the others by themselves:
// https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
func (p program) tracer(ctx context.Context, log *slog.Logger) (trace.Tracer, func(), error) {
	read := func(variable string) string {
		value, _ := p.lookup(variable)
		return value
	}
	nothing := noop.NewTracerProvider().Tracer("")
	exporter := read("OTEL_TRACES_EXPORTER")
	if exporter == "" && (read("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || read("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "") {
		exporter = "otlp"
	}
	if exporter == "" || exporter == "none" || read("OTEL_SDK_DISABLED") == "true" {
		return nothing, func() {}, nil
	}
	protocol := read("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = read("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	switch {
	case exporter != "otlp":
		return nil, nil, &config.Error{Problems: []string{fmt.Sprintf("OTEL_TRACES_EXPORTER: %q is none of otlp, none", exporter)}}
	case protocol != "" && protocol != "http/protobuf":
		return nil, nil, &config.Error{Problems: []string{fmt.Sprintf("OTEL_EXPORTER_OTLP_PROTOCOL: %q: rebound speaks http/protobuf", protocol)}}
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces cannot be sent", "error", err) }))
	client, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "rebound")), resource.WithTelemetrySDK(), resource.WithHost(), resource.WithFromEnv())
	if err != nil {
		return nil, nil, fmt.Errorf("traces: %w", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(client), sdktrace.WithResource(about))
	return provider.Tracer("rebound"), func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			log.Warn("the last traces could not be sent", "error", err)
		}
	}, nil
}

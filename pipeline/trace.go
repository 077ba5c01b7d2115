package pipeline

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// startSpan starts a span below the one in ctx. Where there is none, or one that
// is not recorded, it costs nothing.
func startSpan(ctx context.Context, name string) (context.Context, trace.Span) {
	return trace.SpanFromContext(ctx).TracerProvider().Tracer("rebound/pipeline").Start(ctx, name)
}

// trace has the run's messages carry the trace that ctx belongs to:
// https://www.w3.org/TR/trace-context/#traceparent-header
func (r *Run) trace(ctx context.Context) {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	if parent := carrier.Get(traceparent); parent != "" {
		r.context = []Header{{traceparent, []byte(parent)}}
	}
}

const traceparent = "traceparent"

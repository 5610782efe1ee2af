"""Traces: `tracing.py` is what others use, `otel.py` is what is loaded where traces are wanted."""

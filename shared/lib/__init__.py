"""Tools without a word of the domain: JSON, SSE, HTTP, tasks, the clock, egress, telemetry."""

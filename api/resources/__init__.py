"""Routes without a stream: files, batches, sessions, usage, models, health."""

"""/v1/streams: the native view of a generation, and its state."""

"""The operator's program: `streamspool up`, `demo`, `doctor`, `batch`. Nothing that the server runs imports it."""

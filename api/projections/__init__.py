"""The log seen as an API: pure functions of entries, no I/O."""

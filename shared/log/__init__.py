"""The kernel: one append-only log for each generation. PROTOCOL.md is its specification."""

"""Chunks in bulk: what is done with many of them at once, without a look at each."""

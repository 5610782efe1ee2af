"""The upstream end: the only process that holds provider keys."""

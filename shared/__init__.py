"""What both ends must agree on, and nothing else: the log, its keys and words, settings, errors."""

"""The steps, each in a file: a released one is never changed."""

"""Settings: where they come from, how they are checked, and the URL of Redis."""

"""A connection that one owner keeps: what is sent over it, and told by it, takes no task."""

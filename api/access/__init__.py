"""What a caller may do: the table of routes and roles."""

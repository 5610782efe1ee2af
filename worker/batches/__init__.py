"""Running a batch: its input, its lines, their results, its end."""

"""A generation from its creation to its settlement: submit, find, cancel, end, repair."""

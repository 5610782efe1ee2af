"""Commands for who may ask, and for how much: keys and limits."""

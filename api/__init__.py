"""The HTTP end: who are you, what do you want, here are your bytes."""

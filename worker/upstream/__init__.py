"""Asking a provider: attempts, time limits, retries and fallbacks."""

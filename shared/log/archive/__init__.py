"""Logs that have ended, as objects in the file storage."""

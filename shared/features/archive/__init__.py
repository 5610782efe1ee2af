"""Ended logs as objects in the file storage."""

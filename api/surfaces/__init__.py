"""The APIs that stream: a room for each, which turns requests into chat and logs into events. None knows another."""

"""WebSockets of clients: what a connection is once it has become one."""

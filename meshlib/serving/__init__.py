"""What both servers have at their doors besides a TCP port: TLS, and Unix sockets."""

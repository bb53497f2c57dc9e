"""What does the work: a Python function, a command, an HTTP endpoint, or one of the agents known by name."""

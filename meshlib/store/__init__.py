"""Where a client keeps its state."""

"""Files between agents: what is sent, what is received, and where it may lie."""

"""Whole clients: messages from one to another through a relay, memory with many peers, and how long a start takes."""

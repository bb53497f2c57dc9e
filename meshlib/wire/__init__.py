"""What travels: frames, encodings, registry requests."""

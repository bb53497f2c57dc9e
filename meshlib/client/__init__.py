"""The client: cores that decide, shells that do."""

"""What a message costs in cryptography: one process per library, all doing the same three things."""

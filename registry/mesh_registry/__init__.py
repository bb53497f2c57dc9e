"""The registry: who is there, and the prekeys to reach them."""

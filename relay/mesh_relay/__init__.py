"""The relay: carries ciphertext between agents, keeps it for absent ones."""

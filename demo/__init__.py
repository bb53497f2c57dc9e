"""``python -m demo``: agents in three runtimes talk through a relay that sees ciphertext only."""

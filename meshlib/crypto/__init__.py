"""Keys, prekeys, X3DH and the Double Ratchet: pure functions over frozen values."""

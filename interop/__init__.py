"""Every pairing of clients on every relay and registry, live. Importable from the repository root only."""

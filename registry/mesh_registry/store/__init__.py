"""Where the registry keeps its agents: one protocol, a store in memory and one on SQLite."""

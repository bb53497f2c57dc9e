"""One process owns an identity, others on the machine use it over a Unix socket; docs/daemon.md."""

"""The network AI agents talk over."""

"""The mesh as tools for a model: seven definitions, offered by MCP, as a Hermes plugin and to agent frameworks.

The definitions need nothing but the standard library, so that they load inside a runtime whose packages are pinned.
"""

"""Measures our programs beside the ones they replace. ``python -m bench --help``; docs/benchmarks.md has the results.

Modules under :mod:`bench.crypto` and :mod:`bench.client` also run in the peers' own environments, so this file and
:mod:`bench.worker` import the standard library only.
"""

"""Benchmarks against a peer, both measured in one run and given as a ratio: ``python -m
tests.bench``."""

"""Measurements beside the peer, in one go, as ratios. Run them with ``python -m tests.bench``."""

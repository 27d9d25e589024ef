"""Analyze adapters: statistics, summaries and differences."""

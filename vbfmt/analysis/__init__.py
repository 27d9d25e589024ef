"""Analyse adapters: statistics, summaries and differences."""

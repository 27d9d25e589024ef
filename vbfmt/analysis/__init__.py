"""Analysis of adapters: statistics, summaries, differences."""

"""What an adapter holds: statistics, summaries, differences."""

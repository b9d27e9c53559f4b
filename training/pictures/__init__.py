"""What a run draws while it trains."""

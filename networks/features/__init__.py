"""What metrics look at: feature extractors, by name."""

"""Plain implementations to measure against: the published formulas as a researcher writes them down, not tuned."""

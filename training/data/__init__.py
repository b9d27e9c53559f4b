"""Data sets: sources, the archive format, reading it back, batches."""

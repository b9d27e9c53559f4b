"""Checkpoints of others: how their files name things, and which networks of ours hold them."""

"""The sub-commands of `analyze.py`: one file each, which holds its options and its `command`."""

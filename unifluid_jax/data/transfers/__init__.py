"""The transfer tasks and their raw files."""

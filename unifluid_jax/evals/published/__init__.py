"""Metrics of files as papers report them."""

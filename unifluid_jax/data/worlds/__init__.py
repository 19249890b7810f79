"""Procedural worlds."""

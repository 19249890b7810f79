"""Scoring what a model draws and says in the embedded world."""

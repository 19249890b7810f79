"""Importing published weights, and writing ours under their names."""

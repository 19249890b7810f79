"""What systems share, as functions."""

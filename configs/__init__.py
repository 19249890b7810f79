"""Experiments as ml_collections; `base.py` has every key, others are diffs."""

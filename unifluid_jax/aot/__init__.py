"""Ahead-of-time compilation: does a configuration fit, how fast can it be."""

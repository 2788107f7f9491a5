"""Completions, and how they are sampled."""

"""Directions, candidates, and one file for each way to make them."""

"""Directions: the artifact, and one file for each way to make candidates."""

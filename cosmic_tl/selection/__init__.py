"""Choosing one direction among the candidates: scores, filters, and why."""

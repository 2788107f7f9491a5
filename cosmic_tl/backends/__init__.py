"""Other processes, on this machine or on others, that hold copies of a model and share its work."""

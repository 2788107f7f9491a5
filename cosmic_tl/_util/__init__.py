"""Files, progress bars and displays: one of each, for every room."""

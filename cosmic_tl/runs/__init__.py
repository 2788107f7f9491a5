"""The main job: settings, directory, resume."""

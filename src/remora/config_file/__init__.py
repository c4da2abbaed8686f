"""A config file: read, checked, described. Knows nothing of what happens to it."""

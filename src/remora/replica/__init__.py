"""The process that runs one copy of the user's code."""

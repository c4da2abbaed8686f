"""The embedded engine: one supervisor, one machine."""

"""The commands as they are typed: their names, options and help."""

"""Every option that users give, as data, with what is checked of each. Sends nothing anywhere."""

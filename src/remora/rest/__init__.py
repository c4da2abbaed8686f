"""The REST API: routes and shapes that tools for Ray Serve know, in a process of its own."""

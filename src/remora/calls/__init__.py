"""Parts of a call through a handle: its arguments, the replica chosen for it, its answers."""

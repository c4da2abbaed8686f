"""Multiplexed models in a replica: loaded, kept, unloaded."""

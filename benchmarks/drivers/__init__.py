"""Processes that run a load on order: see `orders.py` for the conversation."""

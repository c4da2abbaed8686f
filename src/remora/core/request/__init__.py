"""Decisions on the way of a request: who may come in, who waits, what is made again, what is full."""

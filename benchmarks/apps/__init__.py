"""The applications that are measured: the same work, once for each server.

Rules: one module for each server and work, so that a server loads nothing it does not need.
"""

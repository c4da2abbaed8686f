"""How many replicas a deployment should have: demand, formula, delays, and the record of it all.

Rules: pure, like everything in `core`; the shell is `control/autoscaler.py`.
"""

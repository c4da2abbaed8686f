"""The benchmark harness: every speed goal beside its limit, in one run (`make bench`).

Rules: importing this package imports nothing else, because the applications under `apps/` are
loaded by the servers being measured, whose start and memory are rows of the table.
"""

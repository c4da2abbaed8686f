"""The command line.

Rules: commands ask the public client and print; they decide nothing about serving. `main` only
declares commands and imports what a command needs inside of it, so that each starts quickly.
Results go to stdout, everything about the way there to stderr. Exit status: 0 done, 1 it failed,
2 the command line itself was wrong, 130 interrupted before it was done.
"""

"""Model serving in Python: runs alone on one machine, fast, loses no request."""

from __future__ import annotations

__version__ = "0.1.0"

"""Write constraints.txt from what this environment has installed.

Plain `name==version` lines: no hosts, no local build tags, so that any index can serve them.
"""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

#: Part of every virtual environment, or this project itself.
NOT_PINNED = frozenset({"pip", "setuptools", "wheel", "remora"})

HEADER = """\
# What everything here was tested with. Made by scripts/pin.py; do not edit by hand.
"""


def main() -> None:
    """Write the file."""
    pins = {}
    for dist in distributions():
        name = re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower()
        if name not in NOT_PINNED:
            # `2.13.0+cpu` is 2.13.0 built in some way; constraints name the version alone.
            pins[name] = dist.version.partition("+")[0]
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    target = Path(__file__).resolve().parent.parent / "constraints.txt"
    target.write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"{target.name}: {len(lines)} pins")


if __name__ == "__main__":
    main()

"""`python -m remora` is the command `remora`."""

from __future__ import annotations

from remora.cli.main import main

if __name__ == "__main__":
    main()

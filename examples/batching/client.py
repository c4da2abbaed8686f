"""Send many rows at the same time: python client.py [URL]."""

from __future__ import annotations

import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
ROWS = [f"{number:0{length}b}" for length in (4, 8) for number in range(12)] + ["0120"]


def get(path: str) -> Any:
    with urllib.request.urlopen(URL + path) as response:
        return json.load(response)


with ThreadPoolExecutor(16) as threads:
    answers = dict(zip(ROWS, threads.map(lambda row: get(f"/?row={row}"), ROWS), strict=True))
for row in ("0111", "00000011", "0120"):
    print(row, json.dumps(answers[row]))

right = sum(answers[row] == {"odd": row.count("1") % 2 == 1} for row in ROWS)
print(f"{right} of {len(ROWS)} right")
statistics = get("/statistics")
print("items in all batches:", int(statistics["serve_actual_batch_size"]["sum"]))
print("fewer batches than items:", statistics["serve_batches_processed"] < len(ROWS))

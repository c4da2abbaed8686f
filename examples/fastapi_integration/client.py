"""Use each route once, the wrong way too: python client.py [URL]."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"


def ask(path: str, body: dict[str, str] | None = None) -> None:
    request = urllib.request.Request(
        URL + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as response:
            print(response.status, response.read().decode().rstrip())
    except urllib.error.HTTPError as error:
        detail = json.load(error)["detail"]
        print(error.code, detail if isinstance(detail, str) else detail[0]["msg"])


ask("/languages")
ask("/translate", {"text": "Good morning, Remora!", "to": "de"})
ask("/translate", {"text": "Good morning", "to": "xx"})
ask("/translate", {"text": "", "to": "de"})
ask("/stream?text=good+fish&to=fr")

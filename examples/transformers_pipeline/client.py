"""Classify a sentence or two: python client.py [URL]."""

from __future__ import annotations

import json
import sys
import urllib.request

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"

for text in ("What a lovely day!", "This is a sad story."):
    request = urllib.request.Request(
        f"{URL}/classify",
        data=json.dumps({"text": text}).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        print(response.read().decode())

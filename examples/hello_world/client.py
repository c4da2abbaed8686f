"""Ask for a greeting: python client.py [URL]."""

from __future__ import annotations

import sys
import urllib.request

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"

for path in ("/", "/?name=Ada"):
    with urllib.request.urlopen(URL + path) as response:
        print(response.status, response.read().decode())

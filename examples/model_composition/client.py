"""Send a text, read what was found, then read a stream: python client.py [URL]."""

from __future__ import annotations

import sys
import urllib.request

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
TEXT = b"A happy fish is a fine fish. A sad fish is a hungry fish."

with urllib.request.urlopen(URL, data=TEXT) as response:
    print(response.read().decode())

with urllib.request.urlopen(f"{URL}/spell", data=b"Swim along") as response:
    for line in response:
        print(line.decode().rstrip())

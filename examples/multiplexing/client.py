"""Ask four models, twice each: python client.py [URL]."""

from __future__ import annotations

import sys
import urllib.request

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"

for language in ("de", "fr", "it", "nl", "de", "fr", "it", "nl"):
    request = urllib.request.Request(
        URL, data=b"good morning fish", headers={"serve_multiplexed_model_id": language}
    )
    with urllib.request.urlopen(request) as response:
        print(language, response.read().decode())

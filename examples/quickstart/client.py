"""Ask the quickstart three questions: python client.py [URL]."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"


def predict(**flower: float) -> str:
    request = urllib.request.Request(
        f"{URL}/predict",
        data=json.dumps(flower).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        problem = json.load(error)["detail"][0]
        return f"{error.code} {problem['loc'][-1]}: {problem['msg']}"


print(predict(sepal_length=5.1, sepal_width=3.5, petal_length=1.4, petal_width=0.2))
print(predict(sepal_length=6.7, sepal_width=3.0, petal_length=5.8, petal_width=2.2))
print(predict(petal_width=-1.0))

"""What is read from and written for the load generators."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.http_load import HttpRequest, WrkResult, parse_wrk, response_is_complete, wrk_script

CLEAN = """Running 3s test @ http://127.0.0.1:34017/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   543.21us  110.03us   4.55ms   91.24%
    Req/Sec    59.01k     3.12k   63.40k    80.00%
  176136 requests in 3.00s, 20.83MB read
Requests/sec:  58712.12
Transfer/sec:      6.94MB
"""
BROKEN = CLEAN.replace(
    "Requests/sec",
    "  Socket errors: connect 0, read 3, write 1, timeout 2\n"
    "  Non-2xx or 3xx responses: 17\nRequests/sec",
)


def test_reads_the_rate_that_wrk_prints() -> None:
    assert parse_wrk(CLEAN) == WrkResult(58712.12, refused=0, socket_errors=0)


def test_counts_refused_and_broken_requests() -> None:
    assert parse_wrk(BROKEN) == WrkResult(58712.12, refused=17, socket_errors=6)


def test_output_without_a_rate_is_an_error_that_shows_it() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused")


def test_get_needs_no_script() -> None:
    assert wrk_script(HttpRequest(80)) == ""


def test_script_sends_every_byte_of_a_body() -> None:
    script = wrk_script(HttpRequest(80, body=b'a"\n\xff', content_type="text/plain"))
    assert 'wrk.method = "POST"' in script
    assert r'wrk.body = "\097\034\010\255"' in script
    assert 'wrk.headers["Content-Type"] = "text/plain"' in script


def test_request_bytes() -> None:
    assert HttpRequest(81, "/x").encode() == b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:81\r\n\r\n"
    posted = HttpRequest(81, "/x", b"{}").encode()
    assert posted.startswith(b"POST /x HTTP/1.1\r\n")
    assert posted.endswith(b"\r\nContent-Length: 2\r\n\r\n{}")


SIZED = b"HTTP/1.1 200 OK\r\ndate: x\r\nContent-Length: 12\r\nserver: y\r\n\r\nabcd\r\n\r\nefgh"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


@pytest.mark.parametrize("response", (SIZED, CHUNKED))
@given(data=st.data())
def test_response_is_complete_at_its_last_byte_only(response: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(response)))
    assert response_is_complete(response[:cut]) == (cut == len(response))


def test_length_in_the_body_is_not_a_header() -> None:
    body = b"\r\ncontent-length: 999\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert response_is_complete(head + body)

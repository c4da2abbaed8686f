"""Response heads: no header breaks out of its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.proxy.head import has_body, render


def test_framing_headers_are_left_to_the_writer() -> None:
    head = render(
        200,
        [(b"Content-Length", b"5"), (b"transfer-encoding", b"chunked"), (b"X-A", b"b")],
    )
    assert head.lines == [b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n"]
    assert (head.content_length, head.close) == (5, False)
    assert render(299, [(b"connection", b"Close")]).close


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_a_rendered_header_is_one_line(name: bytes, value: bytes) -> None:
    try:
        head = render(200, [(name, value)])
    except ValueError:
        return
    text = b"".join(head.lines)
    assert text.count(b"\r\n") == len(head.lines) == text.count(b"\n") == text.count(b"\r")


@pytest.mark.parametrize("status", (0, 99, 100, 103, 199, 600, 999))
def test_statuses_that_http_does_not_have_are_refused(status: int) -> None:
    with pytest.raises(ValueError, match=str(status)):
        render(status, [])


@pytest.mark.parametrize("length", (b"-1", b"1x", b""))
def test_lengths_that_are_no_numbers_are_refused(length: bytes) -> None:
    with pytest.raises(ValueError, match="content-length"):
        render(200, [(b"content-length", length)])


def test_who_has_a_body() -> None:
    assert has_body("GET", 200)
    assert not any((has_body("HEAD", 200), has_body("GET", 204), has_body("GET", 304)))


def test_what_the_application_sets_itself_is_told_to_the_writer() -> None:
    head = render(200, [(b"Date", b"today"), (b"X-REQUEST-ID", b"mine")])
    assert head.lines[1:] == [b"date: today\r\n", b"x-request-id: mine\r\n"]
    assert (head.has_date, head.has_request_id) == (True, True)
    assert render(200, [(b"x-a", b"b")])[3:] == (False, False)

"""Response heads: no header breaks out of its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.proxy import head as head_module
from remora.proxy.head import has_body, read, render
from remora.wire.codec import pack
from remora.wire.messages import HttpStart


def test_framing_headers_are_left_to_the_writer() -> None:
    head = render(
        200,
        [(b"Content-Length", b"5"), (b"transfer-encoding", b"chunked"), (b"X-A", b"b")],
    )
    assert head.text == b"HTTP/1.1 200 OK\r\nx-a: b\r\n"
    assert (head.content_length, head.close) == (5, False)
    assert render(299, [(b"connection", b"Close")]).close


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_a_rendered_header_is_one_line(name: bytes, value: bytes) -> None:
    try:
        head = render(200, [(name, value)])
    except ValueError:
        return
    text = head.text
    # A status line, and one for the header unless the writer of the body sets that itself.
    assert text.endswith(b"\r\n")
    assert 1 <= text.count(b"\r\n") == text.count(b"\n") == text.count(b"\r") <= 2


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
    assert head.text == b"HTTP/1.1 200 OK\r\ndate: today\r\nx-request-id: mine\r\n"
    assert (head.has_date, head.has_request_id) == (True, True)
    plain = render(200, [(b"x-a", b"b")])
    assert (plain.has_date, plain.has_request_id) == (False, False)


def test_a_head_that_was_read_before_is_the_same_and_bad_ones_are_refused_each_time() -> None:
    meta = pack(HttpStart(201, [(b"x-a", b"b"), (b"content-length", b"3")], "/items/{id}"))
    heads = [read(meta) for _ in range(2)]
    assert heads[0] == heads[1]
    assert heads[0] == (
        201,
        b"HTTP/1.1 201 Created\r\nx-a: b\r\n",
        3,
        False,
        False,
        False,
        "/items/{id}",
    )
    broken = pack(HttpStart(200, [(b"x-a", b"b\r\nx-c: d")]))
    for _ in range(2):
        with pytest.raises(ValueError, match="control character"):
            read(broken)


def test_what_is_remembered_of_heads_is_bounded() -> None:
    for number in range(3000):
        meta = pack(HttpStart(200, [(b"etag", b"%d" % number)]))
        assert read(meta).text == b"HTTP/1.1 200 OK\r\netag: %d\r\n" % number
    assert len(head_module._read) <= head_module._MAX_READ

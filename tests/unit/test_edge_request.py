"""Requests are found in a connection's bytes wherever the network cuts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drm_ingest.edge.request import MalformedRequest, Request

HEAD = b"POST /v1/events HTTP/1.1\r\nHost: edge\r\n"
bodies = st.one_of(st.binary(max_size=60), st.text("\r\n0", max_size=12).map(str.encode))


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return a request and its body."""
    body = draw(bodies)
    if draw(st.booleans()):
        return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body, body
    cuts = sorted(draw(st.lists(st.integers(1, max(1, len(body))), max_size=3)))
    chunks = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk)
    trailer = draw(st.sampled_from([b"", b"X-Trailer: 1\r\n"]))
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n" + trailer + b"\r\n", body


def read(pieces: list[bytes]) -> list[bytes]:
    """Read as the door does."""
    request, found = Request(), []
    for data in pieces:
        at = 0
        while at < len(data):
            at = request.feed(data, at)
            if request.complete:
                found.append(request.body())
                request.begin()
    return found


@given(st.lists(requests(), min_size=1, max_size=5), st.data())
def test_requests_are_the_same_wherever_they_are_cut(sent: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    stream = b"".join(request for request, _ in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(pieces) == [body for _, body in sent]
    assert read([stream[at : at + 1] for at in range(len(stream))]) == [body for _, body in sent]


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([HEAD, b"\r\n\r\n", b"Transfer-Encoding: chunked\r\n"])))
)
def test_whatever_arrives_is_a_request_or_malformed(pieces: list[bytes]) -> None:
    try:
        read(pieces)
    except MalformedRequest:
        return


def test_trailers_do_not_become_headers() -> None:
    request = Request()
    framed = b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nAuthorization: Bearer stolen\r\n\r\n"
    data, at = HEAD + framed, 0
    while at < len(data):
        at = request.feed(data, at)
    assert request.complete
    assert b"authorization" not in request.headers


def test_an_offered_upgrade_does_not_hide_the_body() -> None:
    lines = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    for framing, rest in (
        (b"Content-Length: 3\r\n\r\n", b"abc"),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
    ):
        one = HEAD + lines + framing + rest
        assert read([one + one]) == [b"abc", b"abc"]
        assert read([one[:70], one[70:]]) == [b"abc"]


def test_a_body_that_is_not_wanted_is_read_over_and_not_kept() -> None:
    request = Request()
    head = HEAD + b"Content-Length: 100000\r\n\r\n"
    request.feed(head, 0)
    request.wanted = False
    request.feed(b"x" * 100_000, 0)
    assert (request.complete, request.body(), request.body_bytes) == (True, b"", 100_000)


@pytest.mark.parametrize("size", [1, 1000])
def test_chunks_without_content_are_counted(size: int) -> None:
    request = Request()
    request.feed(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", 0)
    for _ in range(3):
        request.feed(b"1;" + b"x" * size if not request.framing_bytes else b"x" * size, 0)
    assert request.framing_bytes == 3 * size + 2


def test_what_comes_behind_a_request_in_one_read_is_the_next_one() -> None:
    one = HEAD + b"Content-Length: 3\r\n\r\nabc"
    other = HEAD + b"Content-Length: 4\r\n\r\ndefg"
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    assert read([one, one + other[:60], other[60:] + chunked + one, other]) == [
        b"abc", b"abc", b"defg", b"hi", b"abc", b"defg",
    ]  # fmt: skip
    request, data = Request(), one + b"nonsense"
    at = request.feed(data, request.feed(data, 0))
    assert (request.complete, request.body(), data[at:]) == (True, b"abc", b"nonsense")  # to be refused in its turn

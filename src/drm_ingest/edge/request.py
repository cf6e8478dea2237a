"""One request after another out of a connection's bytes: where each ends, its headers, its body.

llhttp (in httptools) reads the bytes and is strict: both Content-Length and Transfer-Encoding, two lengths, bare line
feeds and folded headers are errors. It is fed one block at a time, so that it never runs into the next request; or, as
long as reads bring nothing but one request, all that was read.
"""

import httptools

ONCE = frozenset({b"host", b"authorization", b"content-type", b"content-length", b"transfer-encoding", b"date"})
"""Headers that a request has once at most: whoever reads the other of two understands another request."""
_EMPTY_LINE = b"\r\n\r\n"


class MalformedRequest(Exception):
    """The bytes are not HTTP/1.1; nothing that follows on this connection can be understood."""


class Request:
    """The request that is being read; `begin` makes it the next one."""

    __slots__ = (
        "_alone", "_buffer", "_framing_bytes", "_parser", "_tail", "body_bytes", "complete", "head_bytes",
        "head_complete", "headers", "keep_alive", "left", "wanted",
    )  # fmt: skip

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._alone = True  # so far no read brought anything behind a request
        self.begin()

    def begin(self) -> None:
        """Forget the last request."""
        self.headers: dict[bytes, bytes] = {}
        """By lower-case name; of repeated ones the last. Trailers are left out."""
        self.head_bytes = 0
        self.head_complete = False
        self.complete = False
        self.keep_alive = True
        self.left = 0
        """Bytes of the body still to come, where its length was stated."""
        self.body_bytes = 0
        self.wanted = True
        """False: the body is read over, not kept."""
        self._buffer: bytes | bytearray = b""
        self._framing_bytes = 0
        self._tail = b""

    def close(self) -> None:
        """Break the cycle with the parser; nothing is read after this."""
        self._parser = None  # type: ignore[assignment]  # nothing is read after this
        self._buffer = b""

    def body(self) -> bytes:
        """Return the body that was read."""
        buffer = self._buffer
        return buffer if type(buffer) is bytes else bytes(buffer)

    def feed(self, data: bytes, start: int) -> int:
        """Read the next block of `data` from `start`; return where it ended: never beyond the end of the request.

        Raises:
            MalformedRequest: give up the connection.
        """
        size = len(data)
        if self._alone and not start and not self.head_bytes and self._feed_alone(data, size):
            return size
        if self.left:
            end = min(start + self.left, size)
            self.left -= end - start
        else:
            end = self._end_of_block(data, start, size)
            if self.head_complete:
                self._framing_bytes += end - start
            else:
                self.head_bytes += end - start
        try:
            self._parser.feed_data(data if start == 0 and end == size else memoryview(data)[start:end])
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        except httptools.HttpParserError as error:
            ours = error.__context__
            raise ours if isinstance(ours, MalformedRequest) else MalformedRequest(str(error)) from None
        return end

    def _feed_alone(self, data: bytes, size: int) -> bool:
        """Read all of `data` at once, head and body: it begins a request, and hardly ever is there another behind it.

        One call of the parser where block by block it takes two. False: it was more than that, or not to be told;
        nothing has been read, and what comes on this connection is read block by block from now on.
        """
        found = data.find(_EMPTY_LINE)
        if found < 0:
            return False
        head_bytes = found + len(_EMPTY_LINE)
        try:
            self._parser.feed_data(data)
            left = head_bytes + self.left - size
        except (httptools.HttpParserUpgrade, httptools.HttpParserError):
            left = -1  # which of them it was comes out again
        if left < 0 or b"content-length" not in self.headers:
            self._alone = False
            self._parser = httptools.HttpRequestParser(self)
            self.begin()
            return False
        self.head_bytes, self.left = head_bytes, left
        return True

    @property
    def framing_bytes(self) -> int:
        """Chunk sizes, chunk extensions and trailers since a chunk last brought something."""
        return self._framing_bytes

    def _end_of_block(self, data: bytes, start: int, size: int) -> int:
        """Return the end of a head, or of a chunked body, or of the data: both can end only with an empty line."""
        tail = self._tail
        if tail:  # the empty line may have begun in the last read
            found = (tail + data[start : start + 3]).find(_EMPTY_LINE)
            if found >= 0:
                self._tail = b""
                return start + found + 4 - len(tail)
        found = data.find(_EMPTY_LINE, start)
        if found >= 0:
            self._tail = b""
            return found + 4
        self._tail = (tail + data[max(start, size - 3) :])[-3:]
        return size

    def _ignore_upgrade(self) -> None:
        """Read the body of a request that also offers an upgrade (Java's HttpClient offers h2c), which llhttp will not.

        A server may ignore Upgrade (RFC 9110, 7.8); so a new parser is told only how the body is framed.
        """
        headers, keep_alive, head_bytes = self.headers, self.keep_alive, self.head_bytes
        names = (b"host", b"content-length", b"transfer-encoding")
        lines = b"".join(b"%b: %b\r\n" % (name, headers[name]) for name in names if name in headers)
        self._parser = httptools.HttpRequestParser(self)
        self.begin()
        self._parser.feed_data(b"POST /v1/events HTTP/1.1\r\n%b\r\n" % lines)
        self.headers, self.keep_alive, self.head_bytes = headers, keep_alive, head_bytes

    # -- called by the parser; an exception here would come out of feed_data as HttpParserCallbackError

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_complete:
            return  # a trailer
        name, headers = name.lower(), self.headers
        if name in headers and name in ONCE:
            raise MalformedRequest(f"{name.decode()} is there twice")
        headers[name] = value

    def on_headers_complete(self) -> None:
        if self.head_complete:
            raise MalformedRequest("a second request within one")
        self.head_complete = True
        headers = self.headers
        self.keep_alive = self._parser.should_keep_alive()
        length = headers.get(b"content-length")
        if length is not None:
            self.left = int(length)
        elif headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise MalformedRequest("Transfer-Encoding may be chunked only; compress by Content-Encoding")
        if b"host" not in headers:
            raise MalformedRequest("no Host header")

    def on_body(self, chunk: bytes) -> None:
        self._framing_bytes = 0
        self.body_bytes += len(chunk)
        if not self.wanted:
            return
        if not self._buffer:
            self._buffer = chunk
        elif type(self._buffer) is bytes:
            self._buffer = bytearray(self._buffer) + chunk
        else:
            self._buffer += chunk  # one buffer: a list of small chunks takes many times their bytes

    def on_message_complete(self) -> None:
        self.complete = True

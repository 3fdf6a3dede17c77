"""Frames on a byte stream: a length of 4 bytes, little-endian, then so many bytes of msgpack.

Owns: where a message begins and ends, and what is refused. Does not know: what messages mean, or
how bytes travel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from subsecond.errors import ProtocolError

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Longest message: a hundred times the longest prompt that a model of today reads."""

_HEADER_BYTES = 4

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytearray:
    """The bytes of one message. ProtocolError if it is longer than MAX_BODY_BYTES."""
    out = bytearray(_HEADER_BYTES)
    _encoder.encode_into(message, out, _HEADER_BYTES)
    length = len(out) - _HEADER_BYTES
    if length > MAX_BODY_BYTES:
        raise ProtocolError(
            f"a {type(message).__name__} message has {length} bytes; at most {MAX_BODY_BYTES} are "
            "sent"
        )
    out[:_HEADER_BYTES] = length.to_bytes(_HEADER_BYTES, "little")
    return out


class FrameReader(Generic[M]):
    """Makes messages of the bytes of a stream, however it cuts them.

    After a ProtocolError the stream can't be read any further: where the next message begins is
    not known.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[M]:
        """The messages that are complete with `data`, in their order.

        ProtocolError for a length above MAX_BODY_BYTES, before its bytes are waited for, and for a
        body that is not one of the decoder's messages.
        """
        self._buffer += data
        start = 0
        try:
            while (length := self._length(start)) is not None:
                begin = start + _HEADER_BYTES
                if len(self._buffer) < begin + length:
                    return
                with memoryview(self._buffer) as view, view[begin : begin + length] as body:
                    message = self._decode(body)
                start = begin + length
                yield message
        finally:
            del self._buffer[:start]

    def finish(self) -> None:
        """To be called at the end of the stream: ProtocolError if it ends inside a message."""
        if self._buffer:
            raise ProtocolError(
                f"the connection ended inside a message, after {len(self._buffer)} bytes of it"
            )

    def _length(self, start: int) -> int | None:
        """Bytes of the body that begins at `start`; None if its header isn't complete."""
        header = self._buffer[start : start + _HEADER_BYTES]
        if len(header) < _HEADER_BYTES:
            return None
        length = int.from_bytes(header, "little")
        if length > MAX_BODY_BYTES:
            raise ProtocolError(
                f"a message claims {length} bytes; at most {MAX_BODY_BYTES} are accepted"
            )
        return length

    def _decode(self, body: memoryview) -> M:
        try:
            return self._decoder.decode(body)
        # Text inside a message that is not valid UTF-8 is a UnicodeDecodeError, and deep nesting a
        # RecursionError.
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"a message can't be decoded: {error}") from None

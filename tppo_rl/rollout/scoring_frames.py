"""Messages between a scoring worker and its parent: pickles behind their length, over a socket.

A worker runs code that nobody knows, so the parent never waits for the rest of a message: its side of the socket does not block,
and what is not complete yet stays in a buffer.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!Q")
MAX_MESSAGE = 1 << 28
"""Longest message, bytes; a longer one means that the other side is broken."""
_CHUNK = 1 << 16
_CHUNKS = 256
"""Chunks that one `poll` reads: a worker that writes without end must not hold its parent."""


def frame_of(message: Any) -> bytes:
    """Returns a message as it goes over the socket."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


class WaitingSocket:
    """A worker's side: it has nothing to do but to wait."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)

    def send(self, message: Any) -> None:
        """Sends a message."""
        self._socket.sendall(frame_of(message))

    def receive(self) -> Any:
        """Waits for the next message.

        Raises:
            EOFError: the parent is gone.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return pickle.loads(self._read(length))

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._socket.recv(min(_CHUNK, size - len(data)))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)


class PollingSocket:
    """A parent's side: nothing here waits."""

    def __init__(self, own: socket.socket) -> None:
        own.setblocking(False)
        self.ended = False
        """Whether the other side is gone, or broken."""
        self._socket = own
        self._out = bytearray()
        self._in = bytearray()

    def fileno(self) -> int:
        """The socket's descriptor, for `select`."""
        return self._socket.fileno()

    def send(self, frame: bytes) -> None:
        """Sends what the socket takes; `poll` sends the rest."""
        self._out += frame
        self._flush()

    def poll(self) -> list[Any]:
        """Returns the messages that have come, complete ones alone."""
        self._flush()
        for _ in range(_CHUNKS):
            try:
                chunk = self._socket.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self.ended = True
                break
            self._in += chunk
        messages = []
        while len(self._in) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._in)
            if length > MAX_MESSAGE:
                self.ended = True
                break
            if len(self._in) < _LENGTH.size + length:
                break
            data = bytes(self._in[_LENGTH.size : _LENGTH.size + length])
            del self._in[: _LENGTH.size + length]
            try:
                messages.append(pickle.loads(data))
            except Exception as error:
                messages.append(error)
        return messages

    @property
    def has_more_to_send(self) -> bool:
        """Whether the socket did not take everything."""
        return bool(self._out)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def _flush(self) -> None:
        while self._out and not self.ended:
            try:
                sent = self._socket.send(self._out[:_CHUNK])
            except BlockingIOError:
                return
            except OSError:
                # What the worker sent before it died may still be read.
                self._out.clear()
                return
            del self._out[:sent]

# SPDX-License-Identifier: Apache-2.0
"""The host's end of the socket: frames in and out, and the memfds beside them.

Never blocks, except in send_now(). A memfd travels with the first byte of its frame, so
descriptors arrive in the order of the frames that name them.
"""

import array
import collections
import fcntl
import os
import select
import socket

from . import frames

READ_SIZE = 256 << 10
FDS_A_MESSAGE = 16
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Gone(Exception):
    """The worker has closed: there is nobody to work for."""


def memfd_of(data):
    """A memfd with these bytes, sealed against every change."""
    fd = os.memfd_create("headrace-frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def read_fd(fd, size):
    parts, at = [], 0
    while at < size:
        part = os.pread(fd, size - at, at)
        if not part:
            raise frames.Malformed("a memfd has %d of the %d bytes that were said" % (at, size))
        parts.append(part)
        at += len(part)
    return b"".join(parts)


class Link:
    def __init__(self, sock, rest=b""):
        sock.setblocking(False)
        self.sock = sock
        self.inbox = bytearray(rest)
        self.fds = collections.deque()  # received, not yet asked for
        self.out = collections.deque()  # (bytes, memfd or -1)
        self.unsent_size = 0

    def send(self, kind, /, **fields):
        """Gathers one frame; flush() sends. data over 1 MiB goes into a memfd."""
        fd = -1
        data = fields.get("data")
        if kind == frames.EVT and data is not None and len(data) > frames.INLINE_MAX:
            fd = memfd_of(data)
            fields["data_fd_size"] = len(data)
            fields["data"] = None
        raw = frames.encode(kind, fields)
        self.out.append((raw, fd))
        self.unsent_size += len(raw)

    def flush(self):
        """Writes what the socket takes; True when nothing is left. Raises Gone."""
        while self.out:
            raw, fd = self.out[0]
            beside = []
            if fd >= 0:
                beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            try:
                size = self.sock.sendmsg([raw], beside, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                raise Gone(str(error)) from error
            if fd >= 0:
                os.close(fd)
            self.unsent_size -= size
            if size == len(raw):
                self.out.popleft()
            else:
                self.out[0] = (memoryview(raw)[size:], -1)
        return True

    def send_now(self, kind, /, **fields):
        self.send(kind, **fields)
        while not self.flush():
            select.select([], [self.sock], [])

    def receive(self):
        """Reads once, without waiting. Raises Gone when the worker has closed."""
        room = socket.CMSG_SPACE(FDS_A_MESSAGE * array.array("i").itemsize)
        try:
            data, beside, _flags, _address = self.sock.recvmsg(
                READ_SIZE, room, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise Gone(str(error)) from error
        for level, kind, raw in beside:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
                self.fds.extend(fds)
        if not data:
            raise Gone("the worker has closed")
        self.inbox += data

    def next(self):
        """The next whole frame as (type, fields), or None. Raises Malformed."""
        if len(self.inbox) < frames.HEAD.size:
            return None
        (size,) = frames.HEAD.unpack_from(self.inbox)
        if size > frames.SIZE_MAX:
            raise frames.Malformed("a frame of %d bytes, the limit is %d" % (size, frames.SIZE_MAX))
        end = frames.HEAD.size + size
        if len(self.inbox) < end:
            return None
        kind, fields = frames.decode(bytes(self.inbox[frames.HEAD.size : end]))
        del self.inbox[:end]
        if fields.pop("tunnel", False):
            fields["tunnel"] = self._take_socket()
        beside_size = fields.pop("input_fd_size", 0)
        if beside_size:
            fields["input"] = self._take_fd(beside_size)
        return kind, fields

    def _take_socket(self):
        """The connection to a gateway beside a REQ of a websocket."""
        if not self.fds:
            raise frames.Malformed("a frame names a connection that did not come")
        return socket.socket(fileno=self.fds.popleft())

    def _take_fd(self, size):
        if size > frames.FD_SIZE_MAX or not self.fds:
            raise frames.Malformed("a frame names a memfd of %d bytes that did not come" % size)
        fd = self.fds.popleft()
        try:
            return read_fd(fd, size)
        finally:
            os.close(fd)

"""The wire protocol by hand, for saying what samkvctl never would: proto/PROTOCOL.md and proto/samkv.proto."""
import contextlib
import socket
import struct

HELLO, PING, INGEST, FETCH, ASK, LIST, SHOW, REMOVE, STATUS, VERIFY, CONFIGURE, PIN, GC, EXPORT, IMPORT = range(1, 16)
COMPACT = 16
TRACE = 17
CALIBRATE = 19
REPLY, ERROR, MORE, FD = 1, 2, 4, 8
MAX_FRAME_BYTES = 64 << 20
HEADER = struct.Struct("<IHHQ")


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number, value):
    """One protobuf field: int → varint, float → double, str and bytes → length-delimited, list → repeated."""
    if isinstance(value, list):
        return b"".join(field(number, v) for v in value)
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else bytes(value)
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def message(**fields):
    """message(f2="x", f1=3): the encoded message; names are f and the field's number."""
    return b"".join(field(int(name[1:]), value) for name, value in fields.items())


def tokens(ids):
    """A Tokens message."""
    return field(1, b"".join(varint(i & 0xFFFFFFFFFFFFFFFF) for i in ids))


def fields(raw):
    """number → list of values of an encoded message (bytes for length-delimited fields)."""
    out, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(raw):
        key = number()
        kind = key & 7
        if kind == 0:
            value = number()
        else:
            size = {1: 8, 5: 4}.get(kind) or number()
            value, at = raw[at:at + size], at + size
        out.setdefault(key >> 3, []).append(value)
    return out


class Closed(Exception):
    """The daemon ended the connection."""


class Connection:
    """A blocking connection; a context manager. Requests are numbered from 1."""

    def __init__(self, path, hello=True, timeout=60):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.socket.connect(str(path))
        self.number = 0
        if hello:
            with contextlib.suppress(Closed):       # who is not let in may find out while it speaks; the reason is there
                self.send(HELLO, message(f1=b"samkv", f2=1, f3=1, f4="wire.py"))
            flags, reply = self.receive()[1:]
            if flags & ERROR:
                raise Closed(fields(reply))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, kind, payload=b"", flags=0, claimed=None):
        """claimed: the payload size that the header tells, if not the true one."""
        self.number += 1
        size = len(payload) if claimed is None else claimed
        self.raw(HEADER.pack(size, kind, flags, self.number) + payload)

    def send_with(self, kind, payload, fds):
        """A request with descriptors at its first byte."""
        self.number += 1
        socket.send_fds(self.socket, [HEADER.pack(len(payload), kind, 0, self.number) + payload], fds)

    def raw(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def _exactly(self, count):
        out = bytearray()
        while len(out) < count:
            try:
                piece, passed = socket.recv_fds(self.socket, min(count - len(out), 1 << 20), 4)[:2]
            except ConnectionResetError as error:
                raise Closed from error
            for fd in passed:
                socket.close(fd)
            if not piece:
                raise Closed
            out += piece
        return bytes(out)

    def receive(self):
        """(request number, flags, payload) of the next frame; fds that come along are closed."""
        size, _, flags, number = HEADER.unpack(self._exactly(HEADER.size))
        return number, flags, self._exactly(size)

    def last_of(self, kind, payload, fds):
        """(flags, payload) of the last frame that answers a request with descriptors; pieces before it are dropped."""
        self.send_with(kind, payload, fds)
        while True:
            number, flags, reply = self.receive()
            assert number == self.number, (number, self.number)
            if not flags & MORE:
                return flags, reply

    def ask(self, kind, payload=b""):
        """Sends a request and returns (flags, payload) of its reply."""
        self.send(kind, payload)
        number, flags, reply = self.receive()
        assert number == self.number, (number, self.number)
        return flags, reply

    def error_of(self, kind, payload=b""):
        """(status, text) of a request that must be answered with an Error."""
        flags, reply = self.ask(kind, payload)
        assert flags & ERROR, (flags, reply[:200])
        said = fields(reply)
        return said[1][0], said[2][0].decode()

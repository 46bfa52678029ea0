"""What goes wrong, as exceptions: one line that says what to do, and the status behind it."""
import enum


class Status(enum.IntEnum):
    """Outcomes, with the values of samkv/status.h. A newer daemon may send others: then an int is seen."""
    OK = 0
    NOT_FOUND = 1
    INVALID = 2
    NO_MEMORY = 3
    CORRUPT = 4
    IO = 5
    FULL = 6
    BUSY = 7
    CANCELLED = 8
    UNSUPPORTED = 9
    MISMATCH = 10
    TOO_LARGE = 11
    PROTOCOL = 12
    CLOSED = 13
    NO_DAEMON = 14
    TIMEOUT = 15
    DEVICE = 16
    INTERNAL = 17
    DENIED = 18


class SamkvError(RuntimeError):
    """A call failed. `status` is a Status (or an int that this version does not know), `text` the line."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status, self.text = status, text


class NotFound(SamkvError):
    """No such document or collection."""


class NoDaemon(SamkvError, ConnectionError):
    """Nobody listens at the socket."""


class ConnectionEnded(SamkvError, ConnectionError):
    """The connection ended: make another client. Caches stay good."""


class TimedOut(SamkvError, TimeoutError):
    """No answer within the client's timeout, or a fetch's deadline cannot be kept."""


_CLASSES = {Status.NOT_FOUND: NotFound, Status.NO_DAEMON: NoDaemon, Status.CLOSED: ConnectionEnded,
            Status.TIMEOUT: TimedOut}


def error_for(status: int, text: str) -> SamkvError:
    """The exception for a status of the library."""
    try:
        status = Status(status)
    except ValueError:
        pass
    return _CLASSES.get(status, SamkvError)(status, text)

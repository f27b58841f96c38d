"""The errors that a request is answered with: a token for programs, then a sentence for people.

`[BUSY retry_after=3] the queue has room for 0 rows, not for 1: try again in about 3 s`. Programs act on the token
alone; the sentence may change at any time. docs/errors.md has the table. Imports nothing of Triton.
"""

RESTART_SECONDS = 5
"""Longer than most restarts of a server take on a CPU; a client of a GPU server tries a few times."""


class RequestError(Exception):
    """The reason why a request gets no images. This class itself: a bug of ours, or an error without a class.

    token: for programs. code: the name of the TritonError code. reason: the label of the metrics. The keyword arguments
    of an error are the fields of its token.
    """

    token = "INTERNAL"
    code = "INTERNAL"
    reason = "internal"

    def __init__(self, sentence: str, **fields: int | str | None) -> None:
        super().__init__(sentence)
        self.fields = {name: value for name, value in fields.items() if value is not None}

    @property
    def message(self) -> str:
        """What the client gets."""
        words = [self.token, *(f"{name}={value}" for name, value in self.fields.items())]
        return f"[{' '.join(words)}] {self}"


class InvalidRequest(RequestError, ValueError):
    """A tensor has a value that cannot be used. `row` is its row; None: all rows."""

    token, code, reason = "INVALID", "INVALID_ARG", "invalid"

    def __init__(self, sentence: str, row: int | None = None) -> None:
        super().__init__(sentence if row is None else f"row {row}: {sentence}", row=row)


class TryAgain(RequestError):
    """The same request may succeed after `retry_after` seconds."""

    code = "UNAVAILABLE"

    def __init__(self, sentence: str, retry_after: int = RESTART_SECONDS, **fields: int | str) -> None:
        super().__init__(f"{sentence}: try again in about {retry_after} s", **fields, retry_after=retry_after)


class Busy(TryAgain):
    """The rows of a request do not fit into the queue now."""

    token, reason = "BUSY", "overloaded"


class Draining(TryAgain):
    """The server is stopping; another one, or the same after its restart, may answer the request."""

    token, reason = "DRAINING", "stopping"


class NetworkGone(TryAgain):
    """A network's process has died, does not answer, or has no room. It may work after a restart."""

    token, reason = "NETWORK_GONE", "network"


class NetworkFailed(RequestError):
    """A network has answered with an error, or is not in the repository."""

    token, reason = "NETWORK_FAILED", "network"


class DeadlinePassed(RequestError):
    """The deadline of the request has passed before its images were done."""

    token, code, reason = "DEADLINE", "CANCELLED", "deadline"


class Cancelled(RequestError):
    """The client has cancelled the request or has gone."""

    token, code, reason = "CANCELLED", "CANCELLED", "cancelled"


class AnswerLost(RequestError):
    """The images are done but cannot be sent: shared memory has no room for them, for example."""

    reason = "unsent"


def as_request_error(error: Exception) -> RequestError:
    """The error itself, if it is a RequestError; otherwise a RequestError with its message."""
    return error if isinstance(error, RequestError) else RequestError(str(error))

"""What goes wrong with a call: each error that a server answers with has a class, and what it said."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """The root of the tree."""


class ConnectionFailed(ClientError):
    """No whole answer came. `sent` is whether the server may have got, and acted on, the request."""

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class TimedOut(ConnectionFailed):
    """The server did not answer in time."""


class APIError(ClientError):
    """The server answered with an error, whose fields are OpenAI's.

    `param` names the field of the request at fault, `retry_after` is in seconds; each is None where the
    server does not say. An error that came within a stream has `status` 0.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.retry_after = retry_after


class InvalidRequest(APIError):
    """The request cannot be answered as it is: `param` says which field is wrong."""


class Unauthorized(APIError):
    """The server wants a key, or another one."""


class NotFound(APIError):
    """There is nothing of that name."""


class RateLimited(APIError):
    """There is too much work already; `retry_after` says when to come again."""


class Refused(APIError):
    """A shield withheld the answer."""


class ServerError(APIError):
    """The server, or a server behind it, broke."""


class Unavailable(ServerError):
    """What the request needs is down, such as a shield without whose verdict nothing passes."""


class TurnFailed(ClientError):
    """A response of the model ended as `failed` or `cancelled`; `response` is as it was then."""

    def __init__(self, message: str, response: Any) -> None:
        super().__init__(message)
        self.response = response


class TooManyTurns(ClientError):
    """The model still called tools after `max_turns` of its turns."""


STATUSES: dict[int, type[APIError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    429: RateLimited,
    503: Unavailable,
}
REFUSALS = ("content_filter", "content_policy_violation")
# errors within a stream have no status, but codes and types
KINDS: dict[str, type[APIError]] = {
    "authentication_error": Unauthorized,
    "invalid_request_error": InvalidRequest,
    "rate_limit_error": RateLimited,
    "rate_limit_exceeded": RateLimited,
    "not_found": NotFound,
    "unavailable": Unavailable,
    "guard_unavailable": Unavailable,
}


def answered(status: int, headers: Mapping[str, str], body: bytes) -> APIError:
    """The error of an HTTP answer, in the server's own words where it has any."""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    error = told.get("error") if isinstance(told, dict) else None
    fields = error if isinstance(error, dict) else {"message": error} if error else {}
    return _made(fields, status=status, retry_after=_seconds(headers.get("retry-after")))


def streamed(fields: Mapping[str, Any]) -> APIError:
    """The error that a frame of a stream tells of."""
    return _made(fields, status=0, retry_after=None)


def _made(fields: Mapping[str, Any], *, status: int, retry_after: float | None) -> APIError:
    code, type, param = (fields.get(name) for name in ("code", "type", "param"))
    return _kind(status, code, type)(
        str(fields.get("message") or f"the server answered {status} and did not say why"),
        status=status,
        type=type,
        param=param,
        code=code,
        retry_after=retry_after,
    )


def _kind(status: int, code: str | None, type: str | None) -> type[APIError]:
    if code in REFUSALS:
        return Refused
    if status == 0:
        return KINDS.get(code or "") or KINDS.get(type or "") or ServerError
    return STATUSES.get(status) or (InvalidRequest if status < 500 else ServerError)


def _seconds(header: str | None) -> float | None:
    """A `Retry-After` in seconds, be it a number or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None

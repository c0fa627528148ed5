"""Every error the server answers with: the status lives on the class, the body is OpenAI's."""

import difflib
from collections.abc import Iterable
from typing import Any


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean ...?)` for the closest known names, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


class StackError(Exception):
    """The root of the tree. `param` names the request field at fault, as OpenAI does."""

    status = 500
    type = "server_error"
    code: str | None = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or type(self).code

    def body(self) -> dict[str, Any]:
        error = {"message": str(self), "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        return {}


class ConfigError(StackError):
    """A distribution that cannot run; each line of the message is one mistake."""


class InvalidRequest(StackError):
    status, type = 400, "invalid_request_error"
    code: str | None = None


class ContextOverflow(InvalidRequest):
    """The prompt does not fit; nothing is ever cut off silently."""

    code = "context_length_exceeded"

    def __init__(self, *, limit: int, prompt: int, param: str = "messages") -> None:
        super().__init__(
            f"This model's maximum context length is {limit} tokens, and the prompt has {prompt} tokens "
            "(at least one more is needed to answer). Shorten the prompt, or raise the model's context.",
            param=param,
        )


class TextTooLong(ContextOverflow):
    """A text that is to be embedded or ranked does not fit; `what` names it, `limit` and `tokens` count."""

    def __init__(self, what: str, *, limit: int, tokens: int, param: str) -> None:
        message = f"{what} has {tokens} tokens and the model reads at most {limit}: split it into chunks"
        InvalidRequest.__init__(self, message, param=param)


class Unauthorized(StackError):
    status, type, code = 401, "authentication_error", "invalid_api_key"

    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class NotFound(StackError):
    status, type, code = 404, "invalid_request_error", "not_found"

    def __init__(
        self,
        kind: str,
        name: str,
        known: Iterable[str] | None = None,
        *,
        why: str | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        close = f": {why}" if why else ""
        if known is not None:
            names = sorted(known)
            close = did_you_mean(name, names) or f"; there is {', '.join(names[:10]) or 'none'}"
        super().__init__(f"There is no {kind} `{name}`{close}", param=param, code=code)


class Conflict(InvalidRequest):
    """What is asked for does not go with what is there already."""

    status, code = 409, "conflict"


class TooLarge(InvalidRequest):
    """More bytes than are taken; the message names the limit. Nobody reads the rest."""

    status, code = 413, "too_large"

    def headers(self) -> dict[str, str]:
        return {"connection": "close"}


class Busy(StackError):
    """Too much work already; `retry_after` in seconds."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: str = "1", code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        return {"retry-after": self.retry_after}


class UpstreamError(StackError):
    """A remote server failed, or answered something that is no answer."""

    status, type, code = 502, "upstream_error", "upstream_error"


class UpstreamTimeout(UpstreamError):
    status, code = 504, "upstream_timeout"


class Unavailable(StackError):
    """A backend of ours is down; others go on serving."""

    status, code = 503, "unavailable"


class GuardFailed(Unavailable):
    """A shield could not judge, for a reason in a few words; nothing passes without its verdict."""

    code = "guard_unavailable"

    def __init__(self, shield: str, reason: str) -> None:
        super().__init__(
            f"Shield `{shield}` could not judge ({reason}), and nothing passes without its verdict."
        )


class ClientGone(StackError):
    """Nobody is left to read the answer; nginx's status for it."""

    status, type, code = 499, "client_error", "client_closed_request"

    def __init__(self) -> None:
        super().__init__("the client hung up")

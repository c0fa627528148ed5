"""Errors of this server in Anthropic's words: its type for each status, in its shape."""

import uuid

from llama_stack_lite.answer import Frames, named
from llama_stack_lite.api.messages import Failure, FailureBody
from llama_stack_lite.errors import StackError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def request_id() -> str:
    """A name for a request, as Anthropic's clients show it in their errors."""
    return f"req_{uuid.uuid4().hex[:24]}"


def failure(error: StackError, *, request: str | None = None) -> FailureBody:
    """The error's body; `request` is the request's id."""
    usual = "invalid_request_error" if error.status < 500 else "api_error"
    return FailureBody(
        error=Failure(type=TYPES.get(error.status, usual), message=str(error)), request_id=request
    )


def _frame(error: StackError) -> bytes:
    return b"event: error\ndata: " + failure(error).model_dump_json().encode() + b"\n\n"


FRAMES = Frames(event=named, failure=_frame, end=b"")

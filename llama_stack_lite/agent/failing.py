"""What clients are told of an error that ended a turn."""

import logging

from llama_stack_lite.api.responses import ResponseFailure
from llama_stack_lite.errors import StackError, UpstreamTimeout

log = logging.getLogger(__name__)


def told(error: Exception, *, timeout: float) -> StackError:
    """An error as one of ours; the log has those that nobody foresaw. `timeout` is a turn's, in seconds."""
    if isinstance(error, StackError):
        return error
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(f"the turn took longer than {timeout:g} seconds")
    log.error("a turn broke", exc_info=error)
    return StackError("internal error; the server's log has it")


def failure(error: StackError) -> ResponseFailure:
    """An error as OpenAI's types tell it: they know few codes, so ours stands beside theirs."""
    code = {"rate_limit_error": "rate_limit_exceeded", "invalid_request_error": "invalid_prompt"}
    fields = {"code": code.get(error.type, "server_error"), "message": str(error), "type": error.code}
    return ResponseFailure.model_validate(fields)

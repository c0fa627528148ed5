"""What an upstream says instead of an answer, and the error of ours that says the same."""

import json
import logging
from dataclasses import dataclass

import aiohttp

from llama_stack_lite.errors import Busy, InvalidRequest, StackError, UpstreamError, UpstreamTimeout

log = logging.getLogger(__name__)

LONGEST_ERROR = 64 * 1024  # bytes


class Missing(InvalidRequest):
    """The upstream knows no such thing, mostly no such model."""

    status = 404


class TooLarge(InvalidRequest):
    """The upstream takes no request of this size."""

    status = 413


REFUSALS = {400: InvalidRequest, 404: Missing, 413: TooLarge, 422: InvalidRequest}


@dataclass(frozen=True, slots=True)
class Detail:
    """What an upstream's error body says."""

    message: str
    param: str | None = None
    code: str | None = None

    @classmethod
    def read(cls, body: bytes) -> "Detail | None":
        """Read `{"error": {...}}`, `{"error": "..."}` or `{"message": "..."}`; None for anything else."""
        try:
            found = json.loads(body)
        except ValueError:
            return None
        error = found.get("error") or found if isinstance(found, dict) else None
        if isinstance(error, str):
            return cls(error)
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            return None
        param, code = error.get("param"), error.get("code")
        return cls(
            error["message"],
            param if isinstance(param, str) else None,
            code if isinstance(code, str) else None,
        )


def nonsense(upstream: str, data: bytes) -> UpstreamError:
    shown = data[:200].decode("utf-8", "replace")
    return UpstreamError(f"{upstream} answered what is no OpenAI answer: {shown}")


async def refusal(upstream: str, response: aiohttp.ClientResponse) -> StackError:
    """The error of ours that says what the upstream's status says."""
    status = response.status
    body = await _head(response)
    detail = Detail.read(body)
    said = detail.message if detail else body[:200].decode("utf-8", "replace").strip() or response.reason
    if status < 400:
        place = response.headers.get("location", "nowhere")
        return UpstreamError(f"{upstream} redirects to {place}, which is not followed: correct `base_url`")
    if status in (401, 403):
        log.warning("%s refused our key: %s", upstream, said)
        return UpstreamError(f"{upstream} refused this server's own key ({status}): correct its `api_key`")
    if status == 429:
        wait = response.headers.get("retry-after", "1")
        return Busy(f"{upstream} is busy: {said}", retry_after=wait, code=detail.code if detail else None)
    if status in REFUSALS and detail:
        return REFUSALS[status](detail.message, param=detail.param, code=detail.code)
    if status == 404:
        return UpstreamError(f"{upstream} has no such path ({said}): `base_url` mostly ends in /v1")
    kind = UpstreamTimeout if status in (408, 504) else UpstreamError
    return kind(f"{upstream} failed with status {status}: {said}")


async def _head(response: aiohttp.ClientResponse) -> bytes:
    """The beginning of a body; an error needs no more, and whoever sends it may have no end."""
    body = b""
    async for block in response.content.iter_any():
        body += block
        if len(body) > LONGEST_ERROR:
            break
    return body

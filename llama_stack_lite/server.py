"""The ASGI application: lifespan, routes, keys and limits, one error handler."""

import asyncio
import hmac
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, SecretStr
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .anthropic.errors import failure, request_id
from .config import StackConfig
from .errors import InvalidRequest, StackError, TooLarge, Unauthorized
from .plugins import load
from .routes import containers, inference, mcp, messages, metrics, safety, system
from .stack import SafetyOff, Stack

log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error shape, the same for every failure."""

    error: ErrorDetail


# mistakes within an object, which thus was of the right form
WITHIN = {"union_tag_invalid", "union_tag_not_found", "value_error"}
LINGER = 5  # seconds that a client may go on sending what was refused

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 405, 413, 429, 500, 502, 503, 504)
}


def create_app(config: StackConfig) -> FastAPI:
    """Build the application; providers are built when its lifespan starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.stack = await Stack.build(config)
        yield
        await app.state.stack.aclose()

    app = FastAPI(
        title="llama-stack-lite",
        version=version("llama-stack-lite"),
        lifespan=lifespan,
        responses=ERRORS,
        max_body_size=config.server.max_body_size,
        # tells OpenAPI of the scheme; the check itself stands before the routes
        dependencies=[Depends(HTTPBearer(auto_error=False))] if config.server.api_keys else [],
    )
    for router in _routers(config):
        app.include_router(router)
    if config.storage and find_spec("mcp"):
        app.router.routes.append(mcp.ROUTE)
    app.add_exception_handler(StackError, _answer)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    if config.server.api_keys:
        app.add_middleware(KeyCheck, keys=config.server.api_keys)
    if config.server.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=config.server.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(SafetyOff)
    return app


def _routers(config: StackConfig) -> list[APIRouter]:
    """The routes of what the distribution has, those first that are asked most: each is tried in its turn."""
    found = [inference.router]
    if config.storage and config.vector_io:
        found += load("llama_stack_lite.routes.searchable:ROUTERS", extra="documents")
    if config.storage:
        found += load("llama_stack_lite.routes.stateful:ROUTERS", extra="agents")
    return [*found, *(module.router for module in (messages, containers, safety, metrics, system))]


class KeyCheck:
    """Wants a key for everything but `/v1/health`, the docs too, before a byte of the body is read."""

    def __init__(self, app: ASGIApp, keys: list[SecretStr]) -> None:
        self.app = app
        self.keys = [key.get_secret_value().encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/v1/health" or self._known(Headers(scope=scope)):
            await self.app(scope, receive, send)
        else:
            error = Unauthorized("a valid API key is needed: `Authorization: Bearer ...`, or `x-api-key`")
            await _reply(error, scope)(scope, receive, send)

    def _known(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        sent = [bearer if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
        # every key is compared, in constant time, so that time tells nothing
        matches = [
            hmac.compare_digest(key, each.strip().encode()) for each in sent if each for key in self.keys
        ]
        return any(matches)


class Lingering(JSONResponse):
    """An answer to a body that still comes: the rest is read for a while, and thrown away.

    A connection that is closed before is reset, and the client may lose the answer (RFC 9112, 9.6).
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def opened(message: Message) -> None:
            await send({**message, "more_body": True} if "body" in message else message)

        await super().__call__(scope, receive, opened)
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body"})


def _reply(error: StackError, scope: Scope) -> JSONResponse:
    """The error in the words of the API that was asked: Anthropic's below /v1/messages, else OpenAI's."""
    if re.match(r"/v1/messages(/|$)", scope["path"]):
        name = request_id()
        body = failure(error, request=name).model_dump()
        headers = {**error.headers(), "request-id": name}
        return JSONResponse(body, status_code=error.status, headers=headers)
    kind = Lingering if isinstance(error, TooLarge) else JSONResponse
    return kind(error.body(), status_code=error.status, headers=error.headers())


async def _answer(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StackError)
    return _reply(error, request.scope)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Turn a validation error into OpenAI's 400, which names the first field at fault."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _reply(InvalidRequest(f"the body is no JSON: {first['ctx']['error']}"), request.scope)
    # of the forms that a field may have, the one that went furthest is the one that was meant
    same = [each for each in error.errors() if each["loc"][:2] == first["loc"][:2]]
    places = [_place(each["loc"], error.body, missing=each["type"] == "missing") for each in same]
    depths = [re.split(r"[.\[]", place or "") for place in places]
    meant = max(range(len(same)), key=lambda n: (len(depths[n]), same[n]["type"] in WITHIN))
    place, message = places[meant], _plain(same[meant])
    if place:
        return _reply(InvalidRequest(f"{place}: {message}", param=place), request.scope)
    # what is wrong with several fields together begins with the name of one of them
    named = re.match(r"`(\w+)`", message)
    return _reply(InvalidRequest(message, param=named and named[1]), request.scope)


def _plain(error: dict[str, Any]) -> str:
    """Pydantic's words for a mistake, or others where those are about its own ways."""
    if error["type"] == "union_tag_invalid":
        known = error["ctx"]["expected_tags"].replace("'", "`")
        return f"`{error['ctx']['tag']}` is none of the types that are known here: {known}"
    if error["type"] == "union_tag_not_found":
        return "it has no `type`, or none that is a text"
    return str(error["msg"]).removeprefix("Value error, ")


def _place(location: tuple[str | int, ...], body: Any, *, missing: bool) -> str | None:
    """Write `("messages", 0, "role")` as `messages[0].role`; pydantic's names for types are no steps."""
    source, *steps = location
    if source != "body":  # of the query or the path
        return str(steps[0]).removesuffix("[]")
    text = ""
    for number, step in enumerate(steps):
        if isinstance(step, int):
            inside = isinstance(body, list) and step < len(body)
        else:
            inside = isinstance(body, dict) and step in body
        if inside:
            body = body[step]
        if inside or (missing and number == len(steps) - 1):
            text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.lstrip(".") or None


async def _http(request: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses: no such path, wrong method, a body too large."""
    assert isinstance(error, HTTPException)
    if responder := request.scope.get("starlette._body_limit_responder"):
        # or Starlette would put its own plain text in the place of this answer to a body too large
        responder.content_length = None
    refused = InvalidRequest(str(error.detail))
    refused.status = error.status_code
    reply = _reply(refused, request.scope)
    reply.headers.update(error.headers or {})
    return reply


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("a request broke", exc_info=error)
    return _reply(StackError("internal error; the server's log has it"), request.scope)

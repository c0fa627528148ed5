"""/mcp, for programs that speak MCP over streamable HTTP"""

from starlette.routing import Route
from starlette.types import Receive, Scope, Send


class MCP:
    """The endpoint; what answers it is imported with the first request, as that takes a second."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = await scope["app"].state.stack.agents.serving()
        await serving(scope, receive, send)


ROUTE = Route("/mcp", MCP(), methods=["GET", "POST", "DELETE"], include_in_schema=False)

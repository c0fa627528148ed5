"""Who is asking: set where a request is answered, read where requests wait for each other."""

from contextvars import ContextVar

client: ContextVar[str] = ContextVar("client", default="")

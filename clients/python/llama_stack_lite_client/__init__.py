"""llama-stack-lite from Python: typed calls of a server, and agents made of Python functions."""

from .agent import Agent, Session
from .calls import AsyncStream, Stream
from .client import AsyncClient, Client
from .errors import (
    APIError,
    ClientError,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    RateLimited,
    Refused,
    ServerError,
    TimedOut,
    TooManyTurns,
    TurnFailed,
    Unauthorized,
    Unavailable,
)
from .telling import AgentEvent, Approval, Call, Done, Reasoning, Refusal, Result, Text, Turn
from .tools import Tool, tool
from .wires import Awaiting, Blocking

__all__ = [
    "APIError",
    "Agent",
    "AgentEvent",
    "Approval",
    "AsyncClient",
    "AsyncStream",
    "Awaiting",
    "Blocking",
    "Call",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "Done",
    "InvalidRequest",
    "NotFound",
    "RateLimited",
    "Reasoning",
    "Refusal",
    "Refused",
    "Result",
    "ServerError",
    "Session",
    "Stream",
    "Text",
    "TimedOut",
    "TooManyTurns",
    "Tool",
    "Turn",
    "TurnFailed",
    "Unauthorized",
    "Unavailable",
    "tool",
]

"""Agents that were made by the API, in versions, of which the newest is the one that answers."""

import json
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from llama_stack_lite.api.agents import Agent, AgentDefinition
from llama_stack_lite.api.ids import new_id, well_formed
from llama_stack_lite.errors import Conflict, NotFound

from .store import Store
from .tables import agents

column = agents.c
SETTINGS = set(AgentDefinition.model_fields)


async def create(store: Store, name: str, definition: AgentDefinition) -> Agent:
    """Keep a new agent, as version 1; raises `Conflict` where one has the name."""
    now = time.time()
    agent = _agent(definition, id=new_id("agent"), name=name, version=1, created_at=int(now))
    try:
        await store.write(lambda connection: connection.execute(insert(agents), _row(agent, created=now)))
    except IntegrityError as error:
        raise Conflict(f"name: there is an agent `{name}` already", param="name") from error
    return agent


async def get(store: Store, reference: str, version: int | None = None) -> Agent | None:
    """A version of an agent, by its id or its name, or its newest; None where there is none."""
    if not well_formed(reference):
        return None
    return await store.read(lambda connection: _get(connection, reference, version))


async def newest(store: Store) -> list[Agent]:
    """The newest version of every agent, the oldest agent first."""
    last = select(column.id, func.max(column.version).label("version")).group_by(column.id).subquery()
    here = (column.id == last.c.id) & (column.version == last.c.version)
    query = select(agents).join(last, here).order_by(column.created_at, column.id)
    return _agents(await store.read(lambda connection: connection.execute(query).all()))


async def versions(store: Store, agent: Agent) -> list[Agent]:
    """Every version of an agent, the newest first."""
    query = select(agents).where(column.id == agent.id).order_by(column.version.desc())
    return _agents(await store.read(lambda connection: connection.execute(query).all()))


async def add_version(store: Store, before: Agent, definition: AgentDefinition) -> Agent:
    """Keep the version after `before`; raises `NotFound`, and `Conflict` where that is not the newest."""
    fields = {"id": before.id, "name": before.name, "created_at": before.created_at}
    agent = _agent(definition, version=before.version + 1, **fields)

    def work(connection: Connection) -> None:
        created = _lock(connection, before.id)
        last = connection.scalar(select(func.max(column.version)).where(column.id == before.id))
        if last != before.version:
            raise Conflict(f"the newest version of this agent is {last} by now; read that before")
        connection.execute(insert(agents), _row(agent, created=created))

    await store.write(work)
    return agent


async def remove(store: Store, agent: Agent) -> None:
    """Forget an agent with all its versions; raises `NotFound`."""

    def work(connection: Connection) -> None:
        _lock(connection, agent.id)
        connection.execute(delete(agents).where(column.id == agent.id))

    await store.write(work)


def _lock(connection: Connection, agent_id: str) -> float:
    """Let others who change the agent wait, and return when it was made; raises `NotFound`."""
    first = select(column.created_at).where(column.id == agent_id, column.version == 1)
    if (row := connection.execute(first.with_for_update()).one_or_none()) is None:
        raise NotFound("agent", agent_id)
    return row.created_at  # type: ignore[no-any-return]


def _row(agent: Agent, *, created: float) -> dict[str, Any]:
    kept = agent.model_dump_json(by_alias=True, include=SETTINGS, exclude_unset=True)
    same = {"id": agent.id, "name": agent.name, "version": agent.version}
    return {**same, "created_at": created, "agent": kept}


def _get(connection: Connection, reference: str, version: int | None) -> Agent | None:
    """By its id first: a name may look like somebody else's."""
    for where in (column.id == reference, column.name == reference):
        query: Select[Any] = select(agents).where(where).order_by(column.version.desc()).limit(1)
        if version is not None:
            query = query.where(column.version == version)
        if row := connection.execute(query).one_or_none():
            return _agents([row])[0]
    return None


def _agents(rows: Sequence[Row[Any]]) -> list[Agent]:
    return [
        _agent(
            AgentDefinition.model_validate(json.loads(row.agent)),
            id=row.id,
            name=row.name,
            version=row.version,
            created_at=int(row.created_at),
        )
        for row in rows
    ]


def _agent(definition: AgentDefinition, **fields: Any) -> Agent:
    return Agent.of(definition, source="api", **fields)

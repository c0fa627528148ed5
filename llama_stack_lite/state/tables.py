"""The tables, the same on SQLite and PostgreSQL; `migrations/` brings a database to them.

Times are seconds since 1970. JSON is kept as text in the very form that the API answers it.
"""

from sqlalchemy import Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

conversations = Table(
    "conversations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("metadata", Text, nullable=False),
)

# what was said in a conversation, in the order of `position`, which is unique in it
conversation_items = Table(
    "conversation_items",
    metadata,
    Column("conversation", String(64), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("id", String(64), nullable=False),
    Column("item", Text, nullable=False),
    Index("conversation_items_id", "conversation", "id", unique=True),
)

# `response` is the object without its output; `request` what it was asked with.
# Who works on a turn holds its lease: `worker` until `leased_until`, and writes only while it does;
# `attempts` counts those who began to.
responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("status", String(16), nullable=False),
    Column("background", Boolean, nullable=False),
    Column("previous", String(64)),
    Column("conversation", String(64)),
    Column("request", Text, nullable=False),
    Column("response", Text, nullable=False),
    Column("worker", String(64)),
    Column("leased_until", Float),
    Column("attempts", Integer, nullable=False),
    Column("cancelled", Boolean, nullable=False),
    Index("responses_waiting", "status", "leased_until"),
)

# the journal of a turn: its input (`side` is "input") and what came of it ("output"), item by item
response_items = Table(
    "response_items",
    metadata,
    Column("response", String(64), primary_key=True),
    Column("side", String(8), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("id", String(64), nullable=False),
    Column("item", Text, nullable=False),
)

# the events of a background turn, several to a row: numbers `first` to `last`, a line of JSON each
response_events = Table(
    "response_events",
    metadata,
    Column("response", String(64), primary_key=True),
    Column("first", Integer, primary_key=True),
    Column("last", Integer, nullable=False),
    Column("events", Text, nullable=False),
)

prompts = Table(
    "prompts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("is_default", Boolean, nullable=False),
    Column("prompt", Text, nullable=False),
)

agents = Table(
    "agents",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("agent", Text, nullable=False),
    Index("agents_name", "name", "version", unique=True),
)

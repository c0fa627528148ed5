"""The tables, the same on SQLite and PostgreSQL; `migrations/` brings a database to them.

Times are seconds since 1970. JSON is kept as text in the very form that the API answers it.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()
KEY = BigInteger().with_variant(Integer, "sqlite")

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

# `place` is the provider that keeps the bytes, under the file's id
files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("purpose", String(16), nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("place", String(64), nullable=False),
    Index("files_created", "created_at", "id"),
    Index("files_expiring", "expires_at"),
)

# `version` grows with each change of what a search may find: an index that knows an older one asks for more
vector_stores = Table(
    "vector_stores",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text),
    Column("metadata", Text, nullable=False),
    Column("expires_days", Integer),
    Column("last_active_at", Float, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("provider", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("dimension", Integer, nullable=False),
    Column("chunking", Text, nullable=False),
    Index("vector_stores_created", "created_at", "id"),
)

# stores that are deleted, until all that was in them is gone too
dropped_stores = Table(
    "dropped_stores",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("provider", String(64), nullable=False),
    Column("dimension", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
)

file_batches = Table(
    "file_batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("store", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("cancelled", Boolean, nullable=False),
)

# what is found, or hidden, as one: a file in a store, or a `raw` chunk that came without a file; `id` is the
# file's or the chunk's. Only those that are `completed` can be found: `version` is the store's since when.
# Who works on one holds its lease, as with `responses`; `parsed` says that all its chunks are there.
documents = Table(
    "documents",
    metadata,
    Column("key", KEY, primary_key=True, autoincrement=True),
    Column("store", String(64), nullable=False),
    Column("id", String(64), nullable=False),
    Column("raw", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("status", String(16), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("filename", Text, nullable=False),
    Column("attributes", Text, nullable=False),
    Column("chunking", Text, nullable=False),
    Column("batch", String(64)),
    Column("error", Text),
    Column("bytes", BigInteger, nullable=False),
    Column("chunks", Integer, nullable=False),
    Column("embedded", Integer, nullable=False),
    Column("parsed", Boolean, nullable=False),
    Column("worker", String(64)),
    Column("leased_until", Float),
    Column("attempts", Integer, nullable=False),
    Index("documents_id", "store", "id", unique=True),
    Index("documents_version", "store", "version"),
    Index("documents_waiting", "status", "leased_until"),
    Index("documents_batch", "batch"),
    sqlite_autoincrement=True,  # no key is given twice
)

# the attributes that filters ask for, one to a row: `kind` is "s" (`text`), "n" or "b" (`number`)
document_attributes = Table(
    "document_attributes",
    metadata,
    Column("document", KEY, primary_key=True, autoincrement=False),
    Column("name", String(64), primary_key=True),
    Column("kind", String(1), nullable=False),
    Column("text", Text().with_variant(Text(collation="C"), "postgresql")),
    Column("number", Float),
)

# `headings` is JSON; `context` is what stands before the text when it is embedded
chunks = Table(
    "chunks",
    metadata,
    Column("key", KEY, primary_key=True, autoincrement=True),
    Column("document", KEY, nullable=False),
    Column("position", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("headings", Text, nullable=False),
    Column("context", Text),
    Column("page", Integer),
    Column("tokens", Integer, nullable=False),
    Index("chunks_document", "document", "position", unique=True),
    sqlite_autoincrement=True,
)

# little-endian float32 of length 1: what every index is made of, and can be made of again
vectors = Table(
    "vectors",
    metadata,
    Column("key", KEY, primary_key=True, autoincrement=False),
    Column("vector", LargeBinary, nullable=False),
)

# keys of chunks that can be found no more, since that version of their store: indexes forget them by it
dropped_chunks = Table(
    "dropped_chunks",
    metadata,
    Column("store", String(64), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("key", KEY, primary_key=True, autoincrement=False),
)

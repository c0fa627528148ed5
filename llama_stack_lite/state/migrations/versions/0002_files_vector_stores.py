"""Files, vector stores and all that is found in them."""

import sqlalchemy as sql
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0002"
down_revision = "0001"

KEY = sql.BigInteger().with_variant(sql.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "files",
        sql.Column("id", sql.String(64), primary_key=True),
        sql.Column("created_at", sql.Float, nullable=False),
        sql.Column("expires_at", sql.Float),
        sql.Column("purpose", sql.String(16), nullable=False),
        sql.Column("filename", sql.Text, nullable=False),
        sql.Column("bytes", sql.BigInteger, nullable=False),
        sql.Column("digest", sql.String(64), nullable=False),
        sql.Column("place", sql.String(64), nullable=False),
    )
    op.create_index("files_created", "files", ["created_at", "id"])
    op.create_index("files_expiring", "files", ["expires_at"])
    op.create_table(
        "vector_stores",
        sql.Column("id", sql.String(64), primary_key=True),
        sql.Column("created_at", sql.Float, nullable=False),
        sql.Column("name", sql.Text, nullable=False),
        sql.Column("description", sql.Text),
        sql.Column("metadata", sql.Text, nullable=False),
        sql.Column("expires_days", sql.Integer),
        sql.Column("last_active_at", sql.Float, nullable=False),
        sql.Column("version", sql.BigInteger, nullable=False),
        sql.Column("provider", sql.String(64), nullable=False),
        sql.Column("model", sql.Text, nullable=False),
        sql.Column("dimension", sql.Integer, nullable=False),
        sql.Column("chunking", sql.Text, nullable=False),
    )
    op.create_index("vector_stores_created", "vector_stores", ["created_at", "id"])
    op.create_table(
        "dropped_stores",
        sql.Column("id", sql.String(64), primary_key=True),
        sql.Column("provider", sql.String(64), nullable=False),
        sql.Column("dimension", sql.Integer, nullable=False),
        sql.Column("version", sql.BigInteger, nullable=False),
    )
    op.create_table(
        "file_batches",
        sql.Column("id", sql.String(64), primary_key=True),
        sql.Column("store", sql.String(64), nullable=False),
        sql.Column("created_at", sql.Float, nullable=False),
        sql.Column("cancelled", sql.Boolean, nullable=False),
    )
    _documents()
    _chunks()
    _keywords()


def _documents() -> None:
    op.create_table(
        "documents",
        sql.Column("key", KEY, primary_key=True, autoincrement=True),
        sql.Column("store", sql.String(64), nullable=False),
        sql.Column("id", sql.String(64), nullable=False),
        sql.Column("raw", sql.Boolean, nullable=False),
        sql.Column("created_at", sql.Float, nullable=False),
        sql.Column("status", sql.String(16), nullable=False),
        sql.Column("version", sql.BigInteger, nullable=False),
        sql.Column("filename", sql.Text, nullable=False),
        sql.Column("attributes", sql.Text, nullable=False),
        sql.Column("chunking", sql.Text, nullable=False),
        sql.Column("batch", sql.String(64)),
        sql.Column("error", sql.Text),
        sql.Column("bytes", sql.BigInteger, nullable=False),
        sql.Column("chunks", sql.Integer, nullable=False),
        sql.Column("embedded", sql.Integer, nullable=False),
        sql.Column("parsed", sql.Boolean, nullable=False),
        sql.Column("worker", sql.String(64)),
        sql.Column("leased_until", sql.Float),
        sql.Column("attempts", sql.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("documents_id", "documents", ["store", "id"], unique=True)
    op.create_index("documents_version", "documents", ["store", "version"])
    op.create_index("documents_waiting", "documents", ["status", "leased_until"])
    op.create_index("documents_batch", "documents", ["batch"])
    op.create_table(
        "document_attributes",
        sql.Column("document", KEY, primary_key=True, autoincrement=False),
        sql.Column("name", sql.String(64), primary_key=True),
        sql.Column("kind", sql.String(1), nullable=False),
        sql.Column("text", sql.Text().with_variant(sql.Text(collation="C"), "postgresql")),
        sql.Column("number", sql.Float),
    )


def _chunks() -> None:
    op.create_table(
        "chunks",
        sql.Column("key", KEY, primary_key=True, autoincrement=True),
        sql.Column("document", KEY, nullable=False),
        sql.Column("position", sql.Integer, nullable=False),
        sql.Column("text", sql.Text, nullable=False),
        sql.Column("headings", sql.Text, nullable=False),
        sql.Column("context", sql.Text),
        sql.Column("page", sql.Integer),
        sql.Column("tokens", sql.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("chunks_document", "chunks", ["document", "position"], unique=True)
    op.create_table(
        "vectors",
        sql.Column("key", KEY, primary_key=True, autoincrement=False),
        sql.Column("vector", sql.LargeBinary, nullable=False),
    )
    op.create_table(
        "dropped_chunks",
        sql.Column("store", sql.String(64), primary_key=True),
        sql.Column("version", sql.BigInteger, primary_key=True, autoincrement=False),
        sql.Column("key", KEY, primary_key=True, autoincrement=False),
    )


def _keywords() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("CREATE VIRTUAL TABLE keywords USING fts5(store, terms, tokenize = 'ascii')")
        op.execute("CREATE VIRTUAL TABLE keyword_counts USING fts5vocab(keywords, row)")
        return
    op.create_table(
        "keywords",
        sql.Column("key", sql.BigInteger, primary_key=True, autoincrement=False),
        sql.Column("terms", TSVECTOR, nullable=False),
        sql.Column("length", sql.Integer, nullable=False),
    )
    op.create_index("keywords_terms", "keywords", ["terms"], postgresql_using="gin")

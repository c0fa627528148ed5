"""Conversations, responses with their journal, prompts and agents."""

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "conversations",
        sql.Column("id", sql.String(64), primary_key=True),
        sql.Column("created_at", sql.Float, nullable=False),
        sql.Column("metadata", sql.Text, nullable=False),
    )
    op.create_table(
        "conversation_items",
        sql.Column("conversation", sql.String(64), primary_key=True),
        sql.Column("position", sql.Integer, primary_key=True),
        sql.Column("id", sql.String(64), nullable=False),
        sql.Column("item", sql.Text, nullable=False),
    )
    op.create_index("conversation_items_id", "conversation_items", ["conversation", "id"], unique=True)
    _responses()
    op.create_table(
        "prompts",
        sql.Column("id", sql.String(64), primary_key=True),
        sql.Column("version", sql.Integer, primary_key=True),
        sql.Column("created_at", sql.Float, nullable=False),
        sql.Column("is_default", sql.Boolean, nullable=False),
        sql.Column("prompt", sql.Text, nullable=False),
    )
    op.create_table(
        "agents",
        sql.Column("id", sql.String(64), primary_key=True),
        sql.Column("version", sql.Integer, primary_key=True),
        sql.Column("name", sql.String(64), nullable=False),
        sql.Column("created_at", sql.Float, nullable=False),
        sql.Column("agent", sql.Text, nullable=False),
    )
    op.create_index("agents_name", "agents", ["name", "version"], unique=True)


def _responses() -> None:
    op.create_table(
        "responses",
        sql.Column("id", sql.String(64), primary_key=True),
        sql.Column("created_at", sql.Float, nullable=False),
        sql.Column("status", sql.String(16), nullable=False),
        sql.Column("background", sql.Boolean, nullable=False),
        sql.Column("previous", sql.String(64)),
        sql.Column("conversation", sql.String(64)),
        sql.Column("request", sql.Text, nullable=False),
        sql.Column("response", sql.Text, nullable=False),
        sql.Column("worker", sql.String(64)),
        sql.Column("leased_until", sql.Float),
        sql.Column("attempts", sql.Integer, nullable=False),
        sql.Column("cancelled", sql.Boolean, nullable=False),
    )
    op.create_index("responses_waiting", "responses", ["status", "leased_until"])
    op.create_table(
        "response_items",
        sql.Column("response", sql.String(64), primary_key=True),
        sql.Column("side", sql.String(8), primary_key=True),
        sql.Column("position", sql.Integer, primary_key=True),
        sql.Column("id", sql.String(64), nullable=False),
        sql.Column("item", sql.Text, nullable=False),
    )
    op.create_table(
        "response_events",
        sql.Column("response", sql.String(64), primary_key=True),
        sql.Column("first", sql.Integer, primary_key=True),
        sql.Column("last", sql.Integer, nullable=False),
        sql.Column("events", sql.Text, nullable=False),
    )

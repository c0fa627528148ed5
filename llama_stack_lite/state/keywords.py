"""What each database is told to search for words: the statements, by its dialect.

On SQLite the words of chunks are in an FTS5 table `keywords` of `store` and `terms`, whose rowid is the
chunk's key; on PostgreSQL in a table of that name of `key`, `terms` (a tsvector, the store's token in it)
and `length`.
A word's `count` is the number of chunks that have it: of all stores in FTS5, of one store in PostgreSQL.
`found` gives the keys that match best; `often` what BM25 needs of them.
"""

from dataclasses import dataclass

from sqlalchemy import TextClause, bindparam, text


@dataclass(frozen=True, slots=True)
class Statements:
    """A match is written by `each` word, words of which `all` are there, and such of which `any` are."""

    counts: TextClause
    found: TextClause
    among: TextClause
    often: TextClause
    each: str
    all: str
    any: str
    match: str
    alone: str  # without the store: where most chunks are its, they are told apart afterwards
    whole: bool  # whether counts are of all stores


FTS5 = "SELECT rowid AS key FROM keywords WHERE keywords MATCH :match"
BEST = "ORDER BY bm25(keywords, 0.0, 1.0) LIMIT :limit"
# a word's `ts_rank` is its frequency, in a scale that grows ever slower
TSVECTOR = """
    SELECT key FROM keywords WHERE terms @@ CAST(:match AS tsquery) {among} ORDER BY (
        SELECT sum(weight * ts_rank(terms, term::tsquery))
        FROM unnest(CAST(:terms AS text[]), CAST(:weights AS float8[])) AS asked(term, weight)
    ) DESC, key LIMIT :limit
"""

STATEMENTS = {
    "sqlite": Statements(
        counts=text("SELECT term, doc FROM keyword_counts WHERE term IN :terms").bindparams(
            bindparam("terms", expanding=True)
        ),
        found=text(f"{FTS5} {BEST}"),
        among=text(f"{FTS5} AND +rowid IN (SELECT value FROM json_each(:among)) {BEST}"),
        often=text(
            "SELECT rowid, NULL, terms, NULL FROM keywords "
            "WHERE rowid IN (SELECT value FROM json_each(:keys))"
        ),
        each='"{}"',
        all=" AND ",
        any=" OR ",
        alone="terms : ({words})",
        match='store : "{store}" AND terms : ({words})',
        whole=True,
    ),
    "postgresql": Statements(
        counts=text(
            "SELECT term, (SELECT count(*) FROM keywords WHERE terms @@ (quote_literal(:store) || ' & ' "
            "|| quote_literal(term))::tsquery) FROM unnest(CAST(:terms AS text[])) AS term"
        ),
        found=text(TSVECTOR.format(among="")),
        among=text(TSVECTOR.format(among="AND key IN (SELECT json_array_elements_text(:among)::bigint)")),
        often=text(
            "SELECT key, length, lexeme, cardinality(positions) FROM keywords, unnest(terms) "
            "WHERE key IN (SELECT json_array_elements_text(:keys)::bigint) "
            "AND lexeme = ANY(CAST(:terms AS text[]))"
        ),
        each="'{}'",
        all=" & ",
        any=" | ",
        match="'{store}' & ({words})",
        alone="{words}",
        whole=False,
    ),
}

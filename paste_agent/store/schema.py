"""Tables of the store, their version, and the steps from one version to the next."""

from __future__ import annotations

import sqlite3

from paste_agent.errors import StoreError

#: In SQLite's header, so that `file` and other programs tell a store from any other database.
APPLICATION_ID = 0x50415341
VERSION = 4

_V1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- What is counted: a metric and its attributes, canonical JSON with the names that go on the wire.
CREATE TABLE series (
    id INTEGER PRIMARY KEY, metric TEXT NOT NULL, attributes TEXT NOT NULL, UNIQUE (metric, attributes));

-- Cumulative, from the making of the store on. Durations in ns; buckets: see store.pack_buckets.
CREATE TABLE totals (
    series INTEGER PRIMARY KEY REFERENCES series, count INTEGER NOT NULL, sum_ns INTEGER NOT NULL,
    max_ns INTEGER NOT NULL, satisfied INTEGER NOT NULL, tolerating INTEGER NOT NULL, frustrated INTEGER NOT NULL,
    buckets BLOB NOT NULL);

-- The same by time: start and width in s. Ageing moves rows into wider ones, so that any sum over rows holds.
CREATE TABLE rollups (
    start INTEGER NOT NULL, width INTEGER NOT NULL, series INTEGER NOT NULL REFERENCES series,
    count INTEGER NOT NULL, sum_ns INTEGER NOT NULL, max_ns INTEGER NOT NULL, satisfied INTEGER NOT NULL,
    tolerating INTEGER NOT NULL, frustrated INTEGER NOT NULL, buckets BLOB NOT NULL,
    PRIMARY KEY (start, width, series)) WITHOUT ROWID;

-- Every recorder that is or was read: the position is committed with the totals that it stands for.
CREATE TABLE recorders (
    id TEXT PRIMARY KEY, position INTEGER NOT NULL, worker INTEGER NOT NULL, pid INTEGER NOT NULL,
    serving INTEGER NOT NULL, state TEXT NOT NULL, opened_at REAL NOT NULL, seen_at REAL NOT NULL,
    requests INTEGER NOT NULL, in_flight INTEGER NOT NULL, busy REAL NOT NULL, words TEXT NOT NULL) WITHOUT ROWID;

-- Counters that are no durations; a time is in ns.
CREATE TABLE counters (
    name TEXT NOT NULL, attributes TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (name, attributes)) WITHOUT ROWID;

-- Kept transactions. detail: JSON; NULL until the process that recorded the transaction has written it.
-- sent: 0 waiting, 1 sent, 2 refused by the collector.
CREATE TABLE traces (
    trace_id BLOB NOT NULL, span_id BLOB NOT NULL, parent_id BLOB, started_at_ns INTEGER NOT NULL,
    duration_ns INTEGER NOT NULL, failed INTEGER NOT NULL, why INTEGER NOT NULL, attributes TEXT NOT NULL,
    detail TEXT, written_at REAL NOT NULL, sent INTEGER NOT NULL, PRIMARY KEY (trace_id, span_id)) WITHOUT ROWID;
CREATE INDEX traces_by_start ON traces (started_at_ns);
CREATE INDEX traces_to_send ON traces (written_at) WHERE sent = 0;
"""

_V2 = """
-- Accounts of processes that died. id: of its recorder; summary: JSON, see postmortem.Postmortem.
CREATE TABLE postmortems (
    id TEXT PRIMARY KEY, at REAL NOT NULL, reason TEXT NOT NULL, summary TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX postmortems_by_time ON postmortems (at);
"""

_V3 = """
-- Log records. source, line: the file that they came in; record: JSON, see log_rows; sent: as of traces.
CREATE TABLE logs (
    source TEXT NOT NULL, line INTEGER NOT NULL, at_ns INTEGER NOT NULL, trace_id BLOB, span_id BLOB,
    record TEXT NOT NULL, sent INTEGER NOT NULL, PRIMARY KEY (source, line)) WITHOUT ROWID;
CREATE INDEX logs_by_time ON logs (at_ns);
CREATE INDEX logs_to_send ON logs (at_ns) WHERE sent = 0;
"""

_V4 = """
-- Sums of rollups over wider slots, for long spans of time: see copies. They can be made again at any time.
-- series: negative ones are groups of them.
CREATE TABLE copies (
    width INTEGER NOT NULL, start INTEGER NOT NULL, series INTEGER NOT NULL,
    count INTEGER NOT NULL, sum_ns INTEGER NOT NULL, max_ns INTEGER NOT NULL, satisfied INTEGER NOT NULL,
    tolerating INTEGER NOT NULL, frustrated INTEGER NOT NULL, buckets BLOB NOT NULL,
    PRIMARY KEY (width, start, series)) WITHOUT ROWID;
-- All series of a metric that have a few attributes in common; id: without its sign.
CREATE TABLE copy_groups (
    id INTEGER PRIMARY KEY, metric TEXT NOT NULL, attributes TEXT NOT NULL, UNIQUE (metric, attributes));
-- Which copies there are: all whose slots lie in [since, until). grouped: 0 those of series, 1 those of groups.
CREATE TABLE copy_spans (
    width INTEGER NOT NULL, grouped INTEGER NOT NULL, since INTEGER NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (width, grouped)) WITHOUT ROWID;
-- Starts of minutes that got rows after they had been copied. A trigger, so that no agent can forget it.
CREATE TABLE copy_stale (start INTEGER PRIMARY KEY);
CREATE TRIGGER rollups_late AFTER INSERT ON rollups
    WHEN NEW.width = 10 AND NEW.start < (SELECT until FROM copy_spans WHERE width = 60 AND grouped = 1)
    BEGIN INSERT OR IGNORE INTO copy_stale VALUES (NEW.start / 60 * 60); END;

-- Kept transactions that have something of note: nobody has to look through the details of all. lookup has these
-- conditions, word for word.
CREATE INDEX traces_with_findings ON traces (started_at_ns) WHERE instr(detail, '"findings": ');
CREATE INDEX traces_with_errors ON traces (started_at_ns) WHERE instr(detail, '"errors": ') OR failed;
-- All that lists of them are chosen by.
CREATE INDEX traces_listed ON traces (started_at_ns, failed, why, duration_ns, attributes);

-- When which version of the application went out; s since the epoch.
CREATE TABLE deployments (
    at REAL NOT NULL, version TEXT NOT NULL, description TEXT NOT NULL, user TEXT NOT NULL);
CREATE INDEX deployments_by_time ON deployments (at);
"""

#: By version: what makes the next one of it.
_STEPS = {0: _V1, 1: _V2, 2: _V3, 3: _V4}


def refuse_foreign(connection: sqlite3.Connection, path: str, *, may_be_empty: bool) -> None:
    """Look, before anything is written, whether the database is a store that this version knows, or still empty.

    Raises StoreError for a store of a newer agent, and for a database that is no store.
    """
    connection.execute("BEGIN")  # one view of it: another process may be making the tables
    try:
        application = _number(connection, "PRAGMA application_id")
        version = version_of(connection)
        tables = _number(connection, "SELECT count(*) FROM sqlite_master")
    finally:
        connection.rollback()
    if application == version == tables == 0:
        if may_be_empty:
            return
        raise StoreError(f"{path}: still empty: the service is just making it; try again in a second")
    if application != APPLICATION_ID:
        raise StoreError(f"{path}: a database, but not a store of paste-agent; set another `store`")
    if version > VERSION:
        raise StoreError(
            f"{path}: made by a newer paste-agent (schema {version}, this one knows {VERSION});"
            " upgrade paste-agent, or set another `store`"
        )


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables, or bring them up to VERSION. Several processes may do so at once."""
    if version_of(connection) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = version_of(connection)
        for step in range(version, VERSION):
            for statement in _statements(_STEPS[step]):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def version_of(connection: sqlite3.Connection) -> int:
    return _number(connection, "PRAGMA user_version")


def _number(connection: sqlite3.Connection, query: str) -> int:
    (number,) = connection.execute(query).fetchone()
    return int(number)


def _statements(script: str) -> list[str]:
    """`executescript` would commit: the steps belong to one transaction."""
    lines = (line.partition("--")[0] for line in script.splitlines())
    statements, begun = [], ""
    for part in "\n".join(lines).split(";"):
        begun += f"{part};"
        if sqlite3.complete_statement(begun):  # a trigger has semicolons inside of it
            statements.append(begun)
            begun = ""
    return statements

"""The drivers of PostgreSQL, instrumented for the time of one test. Who imports it is skipped where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest

from paste_agent import statements
from paste_agent.instrument import psycopg as psycopg_instrumentation
from paste_agent.instrument import psycopg2 as psycopg2_instrumentation
from tests.databases import Server, restored

psycopg2 = pytest.importorskip("psycopg2")
psycopg = pytest.importorskip("psycopg")
sqlalchemy = pytest.importorskip("sqlalchemy")
for needed in ("psycopg2.extras", "psycopg2.pool", "psycopg2.sql", "psycopg.sql", "sqlalchemy.engine.default"):
    import_module(needed)


@contextmanager
def as_they_were() -> Iterator[None]:
    """Give modules and classes back what they have now, however they were wrapped meanwhile."""
    dialect = sqlalchemy.engine.default.DefaultDialect
    of_psycopg2 = import_module("sqlalchemy.dialects.postgresql.psycopg2").PGDialect_psycopg2
    classes = (
        of_psycopg2,
        psycopg.Cursor,
        psycopg.ServerCursor,
        psycopg.Connection,
        dialect,
        sqlalchemy.pool.QueuePool,
    )
    with restored(psycopg2, psycopg, *classes):
        yield
    statements.configure("sanitised", False)


def where_of(server: Server) -> dict[str, Any]:
    """What a driver's `connect` takes."""
    return {"host": server.host, "port": server.port, "user": server.user, "dbname": server.database}


def instrumented(name: str) -> Any:
    """A module that is instrumented, twice, which is once."""
    module = {"psycopg2": psycopg2, "psycopg": psycopg}[name]
    instrumentation: Any = {"psycopg2": psycopg2_instrumentation, "psycopg": psycopg_instrumentation}[name]
    instrumentation.install(module)
    instrumentation.install(module)
    return module

"""What a text of SQL without values does, and to which tables.

Operation, table and summary are those of OpenTelemetry's conventions for databases. No value is left in what is read
here, so none can be told. This is no parser: it knows where tables are named, and leaves out what it does not know.
"""

from __future__ import annotations

import re

#: What the conventions allow.
MAX_SUMMARY = 255
#: A name as it stands in a text, and one with its schema.
NAME = r"(?:[\w$#@]+|\"[^\"]+\"|`[^`]+`|\[[^\[\]]+\])"
DOTTED = rf"{NAME}(?:\.{{1,2}}{NAME})*"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: First words of statements.
VERBS = _words(
    """
    ABORT ALTER ANALYZE ANALYSE ATTACH AUDIT BACKUP BEGIN BULK CALL CHECK CHECKPOINT CLOSE CLUSTER COMMENT COMMIT
    CONNECT COPY CREATE DEALLOCATE DECLARE DELETE DENY DESC DESCRIBE DETACH DISCARD DO DROP END EXEC EXECUTE EXPLAIN
    FETCH FLUSH GRANT HANDLER IF IMPORT INSERT INSTALL KILL LISTEN LOAD LOCK MERGE MOVE NOTIFY OPEN OPTIMIZE PRAGMA
    PREPARE PRINT PURGE RAISERROR REASSIGN REFRESH REINDEX RELEASE RENAME REPAIR REPLACE RESET RESTORE REVOKE ROLLBACK
    SAVE SAVEPOINT SELECT SET SHOW START STOP TABLE THROW TRUNCATE UNLISTEN UNLOCK UPDATE UPSERT USE VACUUM VALUES
    WAITFOR WHILE WITH XA
    """
)
_TOKENS = re.compile(rf"[\w$#@.]+(?![\w$#@.\"`\[])|[(),;]|[?:$%]+(?:\(\w+\)s|\w*)|{DOTTED}")
_PUNCTUATION = re.compile(r"[\"`\[\]]")
_DML = frozenset(["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE", "UPSERT", "VALUES", "TABLE"])
_DDL = frozenset(["CREATE", "ALTER", "DROP", "REFRESH", "RENAME"])
_OBJECTS = _words(
    """
    AGGREGATE CAST COLLATION COLUMN CONSTRAINT CREDENTIAL DATABASE DOMAIN EVENT EXTENSION FUNCTION GROUP INDEX LANGUAGE
    LINK LOGIN MAPPING OPERATOR PACKAGE POLICY PROCEDURE PUBLICATION ROLE RULE SCHEMA SEQUENCE SERVER SESSION
    STATISTICS SUBSCRIPTION SYNONYM SYSTEM TABLE TABLESPACE TRIGGER TYPE USER VIEW
    """
)
#: Commands that name what they are about.
_NAMING = frozenset(["CALL", "EXEC", "EXECUTE", "TRUNCATE", "COPY", "LOCK", "USE", "PRAGMA", "TABLE"])
#: Commands, and the clause that they begin.
_INTO = {"INSERT": "INTO", "REPLACE": "INTO", "MERGE": "INTO", "UPSERT": "INTO", "UPDATE": "FROM", "DELETE": "DELETE"}
_ON_TABLES = _DML | {"TRUNCATE", "COPY", "LOCK", "CREATE TABLE", "ALTER TABLE", "DROP TABLE"}
#: They may stand between a command and what it is about.
_BETWEEN = _words(
    """
    INTO ONLY LATERAL IGNORE LOW_PRIORITY HIGH_PRIORITY DELAYED QUICK OR REPLACE ROLLBACK ABORT FAIL TABLE TABLES IF
    NOT EXISTS OVERWRITE TOP CONCURRENTLY ON
    """
)
_ENDING = _words(
    """
    WHERE GROUP ORDER HAVING LIMIT OFFSET FETCH FOR UNION INTERSECT EXCEPT MINUS WINDOW QUALIFY RETURNING OUTPUT VALUES
    START CONNECT OPTION DEFAULT WHEN
    """
)
#: What cannot be the name of a table.
_STRUCTURE = _ENDING | _words("FROM JOIN STRAIGHT_JOIN USING SELECT WITH AS SET DISTINCT ( ) ,")
_LOOKED_BACK_AT = frozenset(["DISTINCT", "USING", "TOP", "AS"])
_NOTABLE = (_STRUCTURE | _DML | _LOOKED_BACK_AT | {";"}) - {","}
_NOTABLE_IN = {"FROM": _NOTABLE | {","}, "WITH": None}


class _Reader:
    """Goes through the words of a text once."""

    def __init__(self) -> None:
        self.parts: list[list[str]] = []  # an operation and its tables
        self.mains: list[str] = []  # one a statement
        self.vague = False  # a table cannot be told
        self._begin()

    def _begin(self) -> None:
        self._clause = ""  # that we are in, as far as tables may follow
        self._levels: list[tuple[str, bool]] = []  # clauses outside of open parentheses, and whether they go on
        self._ctes: set[str] = set()
        self._main = ""
        self._ddl = ""
        self._last = ""
        self._expecting = False  # a table
        self._fresh = False  # the last word was a table
        self._start = True  # a command may come
        self._muted = False

    def _end(self) -> None:
        if self._ddl:
            self._operation(self._ddl)
        if self._main:
            self.mains.append(self._main)

    def read(self, text: str) -> None:
        notable: frozenset[str] | None = None  # when only some words make a difference
        for token in _TOKENS.findall(text):
            word = token.upper()
            if notable is not None and word not in notable:
                continue
            fresh, self._fresh = self._fresh, False
            if word == ";":
                self._end()
                self._begin()
            elif self._expecting and word not in _STRUCTURE and word not in _BETWEEN:
                self._table(token)
            elif self._muted:
                pass
            elif self._ddl:
                self._define(word)
            elif word == "(":
                self._open(fresh)
            elif word == ")":
                self._close()
            elif word == ",":
                self._expecting = self._clause == "FROM"
            elif self._clause == "WITH" and word not in _DML and word not in _STRUCTURE:
                self._ctes.add(_PUNCTUATION.sub("", token).lower())
            else:
                self._keyword(word)
            self._last = word
            if self._expecting or self._start or self._fresh or self._ddl or word in _LOOKED_BACK_AT:
                notable = None
            else:
                notable = _NOTABLE_IN.get(self._clause, _NOTABLE)
        self._end()

    def _operation(self, name: str, clause: str = "", *, expecting: bool = False, muted: bool = False) -> None:
        self.parts.append([name])
        # What WITH names comes before the command that counts.
        if not self._main and not any(outer == "WITH" for outer, _ in self._levels):
            self._main = name
        self._ddl = ""
        self._start = False
        self._clause, self._expecting, self._muted = clause, expecting, muted

    def _table(self, token: str) -> None:
        self._expecting = False
        name = _PUNCTUATION.sub("", token)
        if token[0] in "?:$%@":
            self.vague = True
        elif name.lower() not in self._ctes:
            self.parts[-1].append(name)
            self._fresh = True

    def _open(self, fresh: bool) -> None:
        if fresh and self._clause == "FROM":  # it was a function
            self.parts[-1].pop()
        self._levels.append((self._clause, self._expecting and self._last == "TOP"))
        # Else the parenthesis holds names of columns.
        self._start = self._clause == "WITH" and self._last in ("AS", "MATERIALIZED")
        self._expecting = self._expecting and self._last not in ("USING", "TOP")
        self._clause = "FROM" if self._expecting else ""

    def _close(self) -> None:
        self._clause, self._expecting = self._levels.pop() if self._levels else ("", False)
        self._start = self._main == "EXPLAIN" and not self._clause

    def _define(self, word: str) -> None:
        if word in _OBJECTS:
            clause = "FROM" if self._ddl == "DROP" else ""
            self._operation(f"{self._ddl} {word}", clause, expecting=True, muted=word not in ("TABLE", "VIEW"))
        elif word == "(":
            self._operation(self._ddl, muted=True)

    def _keyword(self, word: str) -> None:
        start = self._start or self._clause == "WITH"
        if word == "SELECT":
            self._operation(word, "SELECT")
        elif word == "WITH":
            if start or self._last in ("(", "AS") or self._clause == "INTO":
                self._clause, self._start = "WITH", False
        elif start and word in _INTO:
            self._operation(word, _INTO[word], expecting=True)
        elif self._start and (word in VERBS or word in _DDL):
            self._command(word)
        elif word == "FROM":
            self._from()
        elif word in ("JOIN", "STRAIGHT_JOIN"):
            self._expecting = self._clause == "FROM"
        elif word == "USING" and self._main in ("DELETE", "MERGE"):
            self._clause, self._expecting = "FROM", True
        elif word == "SET" or word in _ENDING:
            self._clause, self._expecting = ("SET" if word == "SET" else ""), False
        elif self._start and word[0] not in "?:$%" and self._main != "EXPLAIN":
            self._muted = True  # not a command that we know

    def _command(self, word: str) -> None:
        if self._main == "EXPLAIN":  # an option of it
            return
        if word in _DDL:
            self._ddl = word
        elif word == "EXPLAIN":
            self._operation(word)
            self._start = True
        else:
            self._operation(word, expecting=word in _NAMING, muted=word not in ("DECLARE", "VALUES"))

    def _from(self) -> None:
        if self._clause == "DELETE":
            del self.parts[-1][1:]  # an alias of what follows
        if self._clause in ("DELETE", "SELECT", "SET") and self._last != "DISTINCT":
            self._clause, self._expecting = "FROM", True


def summary(text: str) -> tuple[str | None, str | None, str]:
    """Operation, collection and summary of a text without values."""
    reader = _Reader()
    reader.read(text)
    words: list[str] = []
    length = -1
    before: list[str] = []
    for part in reader.parts:
        if part == before:  # rows that are selected one by one
            continue
        before = part
        for word in part:
            length += len(word) + 1
            if length > MAX_SUMMARY:
                break
            words.append(word)
    mains = set(reader.mains)
    operation = mains.pop() if len(mains) == 1 else None
    tables = {table for part in reader.parts for table in part[1:]}
    collection = tables.pop() if operation in _ON_TABLES and len(tables) == 1 and not reader.vague else None
    return operation, collection, " ".join(words)

"""What is known of a statement, found fast: a statement that repeats costs one look into a dictionary.

Looking a statement up is exact, by its text. What has been found out is kept for statements that come more than once,
in two generations: when the younger one is full it becomes the older one, and what is asked for moves back. One that
is new costs its parsing, so there is a budget for that; beyond it only the first word is known at once, and the rest
when somebody wants to see the span.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

from paste_agent import sql
from paste_agent.recorder import layout
from paste_agent.recorder.writer import Key, SpanKey
from paste_agent.sql_summary import VERBS
from paste_agent.transaction import current

#: Longer statements are parsed each time, in the budget, and kept nowhere.
MAX_KEY = 8192
#: Statements in one generation; of those databases that are met first, and of all others.
_GENERATION, _SMALL_GENERATION = 512, 64
_MANY_SOURCES, _MAX_SOURCES = 8, 64
#: What statements of one database are counted under; there are no more series of them anyhow.
_MAX_KEYS = 2000
#: Statements of which no more is remembered than that they came.
_MAX_SEEN = 2048
#: Statements a second and process that are parsed because they are new, and as many because they come again.
PER_SECOND = 200
_MAX_VERB = 16

_SANITISED, _RAW, _OFF = "sanitised", "raw", "off"
_record = _SANITISED
#: Whether plans of slow queries are asked for.
explaining = False


class Prepared:
    """What all executions of one statement have in common."""

    __slots__ = ("_fetching", "attributes", "key", "name", "operation", "text")

    def __init__(
        self, text: bytes, name: str, operation: str | None, key: SpanKey | Key, attributes: Mapping[str, object]
    ) -> None:
        self.text = text  #: for the black box, UTF-8
        self.name = name  #: of the span
        self.operation = operation
        self.key = key  #: what it is counted under, unless it fails
        self.attributes = attributes  #: shared by all its spans
        self._fetching: Prepared | None = None

    def fetching(self) -> Prepared:
        """What a fetch of its rows is: in the black box the statement itself."""
        found = self._fetching
        if found is None:
            attributes = {name: value for name, value in self.attributes.items() if name != "db.query.text"}
            found = Prepared(self.text, f"fetch {self.name}", self.operation, self.key, attributes)
            self._fetching = found
        return found

    def key_of(self, error_type: str) -> SpanKey:
        """What a failed execution is counted under."""
        return _failed(self.key, error_type)


#: As many take about as long to look through as all else that a new statement costs.
_CHARACTERS = 256


class Budget:
    """So many a second, without a clock: it is told the times that spans begin at. Off by a few where threads meet."""

    __slots__ = ("_at_ns", "_left", "_per_second", "now_ns")

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._left = float(per_second)
        self._at_ns = 0
        self.now_ns = 0  #: when a span began lately; set by whoever begins one

    def take(self, now_ns: int, length: int = 0) -> bool:
        """Whether one more is in it. now_ns: of the monotonic clock, or somewhat before.

        length: characters that it is about: many cost as much as several.
        """
        gained = (now_ns - self._at_ns) * self._per_second / 1e9
        if gained >= 1:
            self._left = min(self._left + gained, float(self._per_second))
            self._at_ns = now_ns
        price = 1 + min(length, MAX_KEY) // _CHARACTERS  # of a longer one the rest is not looked at
        if self._left < price:
            return False
        self._left -= price
        return True


#: Of what is new, and of what has been seen before; the time of the first serves both.
budget = Budget(PER_SECOND)
_again = Budget(PER_SECOND)


class Source:
    """One database, as far as it can be told: its system, its name, and where it is."""

    __slots__ = (
        "__weakref__",
        "_commands",
        "_generation",
        "_keys",
        "_old",
        "_seen",
        "_seen_before",
        "_verbs",
        "address",
        "common",
        "namespace",
        "port",
        "system",
        "young",
    )

    def __init__(
        self,
        system: str,
        namespace: str | None = None,
        address: str | None = None,
        port: int | None = None,
        generation: int = _GENERATION,
    ) -> None:
        """system: `db.system.name`. generation: statements in one generation."""
        self.system = system
        self.namespace = namespace
        self.address = address
        self.port = port
        self._generation = generation
        common: dict[str, object] = {
            "db.system.name": system,
            "db.namespace": namespace,
            "server.address": address,
            "server.port": port,
        }
        self.common = {name: value for name, value in common.items() if value is not None}
        self.forget()
        _sources_made.add(self)

    def forget(self) -> None:
        self.young: dict[str, Prepared] = {}  #: for whoever looks here first, with statements that `find` may keep
        self._old: dict[str, Prepared] = {}
        self._commands: dict[str, Prepared] = {}
        self._verbs: dict[str | None, _Common] = {}
        self._keys: dict[tuple[str | None, ...], Key] = {}
        # Hashes: what never comes again fills nothing.
        self._seen: set[int] = set()
        self._seen_before: set[int] = set()

    def find(self, statement: str) -> Statement:
        """What is known of a statement. Within a transaction: its times are what the budget goes by."""
        if statement.__class__ is not str:
            statement = str.__str__(statement)  # a subclass may compare in its own way
        if len(statement) > MAX_KEY:
            return self._parsed(statement) if budget.take(_now_ns(), len(statement)) else self._unparsed(statement)
        return self.young.get(statement) or self.look(statement)

    def look(self, statement: str) -> Statement:
        """Like `find`, of a str itself that is not among the young ones and no longer than MAX_KEY."""
        found = self._old.get(statement)
        if found is not None:
            self._keep(statement, found)
            return found
        code = hash(statement)
        if code in self._seen or code in self._seen_before:
            if not _again.take(_now_ns(), len(statement)):
                return self._unparsed(statement)
            found = self._parsed(statement)
            self._keep(statement, found)
            return found
        if len(self._seen) >= _MAX_SEEN:
            self._seen_before, self._seen = self._seen, set()
        self._seen.add(code)
        return self._parsed(statement) if budget.take(_now_ns(), len(statement)) else self._unparsed(statement)

    def command(self, operation: str, of: str | None = None) -> Prepared:
        """What is known of something without a text: `COMMIT`, or the call of a procedure. of: by its name."""
        found = self._commands.get(operation) if of is None else None
        if found is None:
            name = operation if of is None else f"{operation} {of}"
            attributes = {**self.common, "db.operation.name": operation, "db.query.summary": name}
            key = self._key(operation, None, name)
            found = Prepared(name.encode("utf-8", "replace"), name, operation, key, attributes)
            if of is None:
                self._commands[operation] = found
        return found

    def attributes_of(self, statement: str) -> dict[str, object]:
        """Attributes of a span that executes the statement."""
        return self._attributes(sql.parse(statement, self.system), statement)

    def _keep(self, statement: str, found: Prepared) -> None:
        if len(self.young) >= self._generation:
            self._old, self.young = self.young, {}
        self.young[statement] = found

    def _parsed(self, statement: str) -> Prepared:
        return self._prepared(sql.parse(statement, self.system), statement)

    def _prepared(self, parsed: sql.Statement, statement: str) -> Prepared:
        name = parsed.summary or parsed.operation or self.system
        return Prepared(
            text=(name if _record == _OFF else parsed.text).encode("utf-8", "replace"),
            name=name,
            operation=parsed.operation,
            key=self._key(parsed.operation, parsed.collection, parsed.summary or None),
            attributes=self._attributes(parsed, statement),
        )

    def _key(self, operation: str | None, collection: str | None, summary: str | None) -> SpanKey | Key:
        fields = self.system, self.namespace, operation, collection, summary, None
        key = self._keys.get(fields)
        if key is None:
            if len(self._keys) >= _MAX_KEYS:  # one that is not found again must not be remembered as itself
                return layout.KIND_DATABASE, fields
            key = self._keys[fields] = Key(layout.KIND_DATABASE, fields)
        return key

    def _attributes(self, parsed: sql.Statement, statement: str) -> dict[str, object]:
        found = dict(self.common)
        if parsed.operation:
            found["db.operation.name"] = parsed.operation
        if parsed.collection:
            found["db.collection.name"] = parsed.collection
        if parsed.summary:
            found["db.query.summary"] = parsed.summary
        if _record == _RAW:
            found["db.query.text"] = statement[: sql.MAX_TEXT]
        elif _record != _OFF and parsed.text:
            found["db.query.text"] = parsed.text
        return found

    def _unparsed(self, statement: str) -> Later:
        words = statement[:_MAX_VERB].split(None, 1)
        verb = words[0] if words else None
        common = self._verbs.get(verb)
        if common is None:
            known = _verb_of(verb)
            name = known or self.system
            common = name.encode("utf-8", "replace"), name, known, self._key(known, None, known)
            if known is not None:  # else it may be any word
                self._verbs[verb] = common
        if len(statement) > MAX_KEY:
            statement = statement[: MAX_KEY + 1]
        return Later(self, statement, common)


_Common = tuple[bytes, str, str | None, SpanKey | Key]


class Later(Mapping[str, object]):
    """A statement of which only the first word is known, and its attributes at the same time.

    It is parsed when somebody looks at them: the reporter, of a kept transaction.
    """

    __slots__ = ("_common", "_found", "_source", "_statement")

    def __init__(self, source: Source, statement: str, common: _Common) -> None:
        self._source = source
        self._statement = statement
        self._common = common
        self._found: dict[str, object] | None = None

    # -- as Prepared has them

    @property
    def text(self) -> bytes:
        return self._common[0]

    @property
    def name(self) -> str:
        return self._common[1]

    @property
    def operation(self) -> str | None:
        return self._common[2]

    @property
    def key(self) -> SpanKey | Key:
        return self._common[3]

    @property
    def attributes(self) -> Mapping[str, object]:
        return self

    def key_of(self, error_type: str) -> SpanKey:
        return _failed(self.key, error_type)

    def fetching(self) -> Prepared:
        text, name, operation, key = self._common
        return Prepared(text, f"fetch {name}", operation, key, self._source.common)

    # -- as a mapping has them

    def _all(self) -> dict[str, object]:
        found = self._found
        if found is None:
            found = self._source.attributes_of(self._statement)
            self._found, self._statement = found, ""
        return found

    def __getitem__(self, name: str) -> object:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


Statement = Prepared | Later


def _verb_of(word: str | None) -> str | None:
    verb = (word or "").rstrip(";").upper()
    return verb if verb in VERBS else None


def _failed(key: SpanKey | Key, error_type: str) -> SpanKey:
    kind, fields = key
    return kind, (*fields[:-1], error_type)


def _now_ns() -> int:
    around = current.get()
    began_ns: int = getattr(around, "start_ns", 0)
    return max(budget.now_ns, began_ns)


_Identity = tuple[str, str | None, str | None, int | None]
_sources: dict[_Identity, Source] = {}
_sources_made: weakref.WeakSet[Source] = weakref.WeakSet()


def source_of(system: str, namespace: str | None = None, address: str | None = None, port: int | None = None) -> Source:
    """The source that connections to the same database share. Connections hold on to theirs."""
    identity = system, namespace, address, port
    found = _sources.get(identity)
    if found is None:
        if len(_sources) >= _MAX_SOURCES:
            _sources.clear()
        size = _GENERATION if len(_sources) < _MANY_SOURCES else _SMALL_GENERATION
        found = _sources[identity] = Source(*identity, size)
    return found


def configure(record_sql: str, explain_queries: bool) -> None:
    """Settings of those names. Where the first one changes, what has been found out of statements is forgotten."""
    global _record, explaining
    explaining = explain_queries
    if record_sql != _record:
        _record = record_sql
        for source in list(_sources_made):
            source.forget()


def shown_line(line: str, system: str) -> str:
    """A line of a database's own words, such as one of a plan, as `record_sql` allows."""
    if _record == _RAW:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    return indent + sql.parse(line, system).text

"""SQL text without its values; what a statement does, and to which tables.

A statement is cut into parts by the rules of its dialect. Where the dialect is not known, or does not decide whether
something is a value, it is taken for one; where dialects disagree on where a value ends, all that follows is hidden.
Server settings that change how quotes are read (NO_BACKSLASH_ESCAPES of MySQL, standard_conforming_strings of
PostgreSQL) are taken to be as they are by default.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from paste_agent.sql_summary import DOTTED, NAME, VERBS, summary

#: Characters of a statement that are looked at.
MAX_INPUT = 8192
#: Characters of a text, the ellipsis included.
MAX_TEXT = 2000
_CUT = "…"


class Statement(NamedTuple):
    """What may be said of a statement.

    `text`: on one line, `?` for each value, lists of values folded, without comments; at most MAX_TEXT characters, the
    last an ellipsis when it was cut. `operation`: in upper case, `SELECT` or `CREATE TABLE`; None when it cannot be
    told, or when several statements differ in it. `collection`: the only table, without quotes, `schema.table` where
    so written; None when there are none or several, or it cannot be told. `summary`: operations and tables in their
    order, at most 255 characters; empty when unknown.
    """

    text: str
    operation: str | None
    collection: str | None
    summary: str


def parse(statement: str, dialect: str = "") -> Statement:
    """The statement as it may be shown. `dialect` is a `db.system.name`; one that is not known is as good as none."""
    cut = len(statement) > MAX_INPUT
    if cut:
        # Half a key may not look like one.
        statement = statement[:MAX_INPUT].rstrip("0123456789abcdefABCDEF")
    text = " ".join(_PARTS.get(dialect, _PARTS[""]).sub(_shown, statement).split())
    text = _without_bare_values(text, dialect)
    if "(" in text or "[" in text:
        text = _LISTS.sub(_folded, text)
        if "), (" in text or "),(" in text:
            text = _ROWS.sub(r"\1", text)
    told = summary(text)
    if cut or len(text) > MAX_TEXT:
        text = text[: MAX_TEXT - 1] + _CUT
    return Statement(text, *told)


@functools.lru_cache(maxsize=256)
def _sanitized(statement: str) -> str:
    return parse(statement).text


def sanitized(statement: str) -> str:
    """The text of the statement in whatever dialect it may be."""
    # One character more than is looked at says that there was more; the cache keeps what it was asked for.
    return _sanitized(statement[: MAX_INPUT + 1])


# -- parts of a statement -------------------------------------------------------------------------------------------
#
# Each pattern is one alternation that takes a whole statement part by part, so a quote begins only where a part does.
# Alternatives do not compete for the same characters, and what is not closed reaches to the end: nothing is gone
# through again and again. A run of words and operators is one part, for what is called for each part costs most.

#: Letters, and all that is not ASCII, which PostgreSQL, MySQL and SQLite take for letters. But spaces beyond ASCII are
#: spaces to some and letters to others, typographic quotes are a mistake, and what nobody sees is not to be shown: from
#: there on all is hidden.
_ODD = r"\s\u2018-\u201f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
_BEGIN = rf"[^\x00-@\[-^`{{-\x9f\d{_ODD}]"
_WITHIN = rf"[^\x00-/:-@\[-^`{{-\x9f{_ODD}]"  # and what else the dialect allows
#: A key that nobody quoted. It may go on with what elsewhere are operators.
_KEY = r"[0-9a-fA-F]{16}"
_PREFIX = r"(?:[nNeEbBxX]|[uU]&|_[A-Za-z]\w*)?"
_NUMBER = r"[-+]?(?:\d|\.\d)[\w.]*(?:(?<=[eE])[-+]\d+)?"
_NEVER = r"(?!)"


def _doubled(quote: str) -> str:
    return rf"{quote}[^{quote}]*(?:{quote}{quote}[^{quote}]*)*(?:{quote}|\Z)"


def _escaped(quote: str, also: str = _NEVER) -> str:
    return rf"{quote}[^{quote}\\]*(?:(?:{quote}{quote}|\\.|{also})[^{quote}\\]*)*(?:{quote}|\\?\Z)"


def _either(quote: str) -> str:
    """Backslashes may escape or not: a difference only before a quote. Three quotes begin a longer string in some."""
    tripled = rf"{quote}{quote}{quote}(?:[^{quote}\\]*{quote}{quote}{quote}(?!{quote})|.*)"
    return rf"{tripled}|{quote}[^{quote}\\]*(?:(?:{quote}{quote}|\\[^{quote}])[^{quote}\\]*)*(?:{quote}|\\.*|\Z)"


def _comment(depth: int) -> str:
    """A comment with comments in it, at most `depth` deep."""
    inner = "|" + _comment(depth - 1) if depth else ""
    return rf"/\*[^*/]*(?:(?:\*(?!/)|/(?!\*){inner})[^*/]*)*\*/"


#: An escaped string of PostgreSQL goes on as one after a line break.
_GOES_ON = r"'[ \t\f\v]*(?:--[^\n\r]*)?[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r])*'"
_DOLLARS = rf"\$(?P<tag>{_BEGIN}\w*|)\$.*?(?:\$(?P=tag)\$|\Z)"
#: A name to MySQL: both end at the same place when nothing in between could begin something else.
_DOLLARS_EITHER = rf"\$(?P<tag>{_BEGIN}\w*|)\$(?:(?:[^'\"`$\\/#\[-]|-(?!-)|/(?!\*))*\$(?P=tag)\$|.*)"
_ORACLE_PAIRS = r"\[.*?(?:\]'|\Z)|\{.*?(?:\}'|\Z)|\(.*?(?:\)'|\Z)|<.*?(?:>'|\Z)"
_ORACLE = rf"[nN]?[qQ]'(?:{_ORACLE_PAIRS}|(?P<delimiter>\S).*?(?:(?P=delimiter)'|\Z)|.*)"
#: An ordinary string elsewhere: both end at the first quote, or nobody knows.
_ORACLE_EITHER = (
    r"[nN]?[qQ]'(?:(?:\[[^'\\]*\]|\{[^'\\]*\}|\([^'\\]*\)|<[^'\\]*>"
    r"|(?P<delimiter>[^\s'\\\[{(<])[^'\\]*(?P=delimiter))'(?!')|.*)"
)
_PLAIN = r"/\*(?!M?!)"
_FLAT = r"[^*]*(?:\*(?!/)[^*]*)*\*/"
_NESTED = _comment(4)
#: With a carriage return alone it is open where the line ends.
_LINE = r"--[^\n\r]*(?=\r?\n|\Z)"
#: A comment to the end of the line here, an operator there; what could begin a quote or a comment decides nothing.
_LINE_EITHER = r"(?:--|\#)[^\n\r'\"`$\\/\[]*(?:(?:\r(?!\n)|['\"`$\\/\[]).*)?"
#: MySQL runs what is in it, with its quotes and all.
_EXECUTED = r"/\*M?![^'\"`*\\#/-]*\*/"
#: A name in SQL Server and SQLite, a subscript in PostgreSQL.
_BRACKETS = r"\[(?:[^\]'\"`$\\/#\[\ud800-\udfff-]|-(?!-)|/(?!\*)|'[^'\]\\\[]*')*\](?!\])"
_BACKTICKS = _doubled("`")
#: A word between backticks; PostgreSQL has an operator `.
_BACKTICKS_EITHER = rf"`(?!{_KEY})[^\W\d][\w$]*(?:[ .-][^\W\d][\w$]*)*`(?!`)"

#: SQLite takes a quoted name that it does not know for a string, unless it stands where only a name can.
_SQLITE_NAME = r'"[^"]*(?:""[^"]*)*"'
_SQLITE_BEFORE = r"(?i:AS|COLUMN|FROM|INDEX|INTO|JOIN|REFERENCES|SET|TABLE|UPDATE|VIEW)"
#: Between two words.
_SQLITE_GAP = rf"(?:\s|--[^\n]*\n|/\*{_FLAT})*"
_SQLITE_COLUMNS = rf"\(\s*{_SQLITE_NAME}(?:\s*,\s*{_SQLITE_NAME})*\s*\)(?={_SQLITE_GAP}(?i:VALUES|SELECT)\b)"
_SQLITE_NAMES = (
    rf"{_SQLITE_BEFORE}\s*{_SQLITE_NAME}|{_SQLITE_COLUMNS}|(?<=[\w\"`\]]\.){_SQLITE_NAME}"
    rf"|{_SQLITE_NAME}(?=\s*\.\s*[^\d\s])"
)


def _pattern(
    *,
    drop: str,
    value: str,
    name: str = _NEVER,
    rest: str = _NEVER,
    brackets: str = _NEVER,
    placeholder: str = r"[:?]\d{1,5}(?!\w)",
    operators: str = "",
    within: str = "$",
    apart: str = _NEVER,
) -> re.Pattern[str]:
    """`operators` and `within`: what may stand alone, and in words, besides the usual. `apart`: what a run may not
    go up to, because it makes a difference what stands before it."""
    word = rf"(?!{_KEY}){_BEGIN}(?:{_WITHIN}|[{within or '_'}])*"
    # Most words are of ASCII, and those sets are fast.
    short = rf"(?!{_KEY})[A-Za-z_][A-Za-z0-9_{within}]*(?![A-Za-z0-9_{within}\x80-\U0010ffff'\"]|&['\"]|{apart})"
    run = (
        rf"{short}|[ ,=)\t\n\r\f\v<>*;%&|!~^@{{}}\]{operators}]+|\((?!{apart})"
        r"|\.(?!\d)|[:?](?!\d)|-(?![-\d.])|\+(?![\d.])|/(?!\*)"
    )
    return re.compile(
        rf"(?P<plain>(?:{run})+)|(?P<drop>{drop})|(?P<rest>{rest}|/\*.*)|(?P<name>{name})|(?P<value>{value})"
        rf"|(?P<brackets>{brackets})|(?P<number>{_NUMBER})|(?P<one>{placeholder}|{word}|[-+:?.$(])|(?P<other>.+)",
        re.DOTALL,
    )


_MYSQL = _pattern(
    drop=rf"--(?=[\x00-\x20]|\Z)[^\n]*|\#[^\n]*|{_EXECUTED}|{_PLAIN}{_FLAT}",
    value=f"{_PREFIX}{_escaped(chr(39))}|{_escaped(chr(34))}",
    name=_BACKTICKS,
)
_PARTS = {
    "": _pattern(
        drop=rf"(?=--(?:[ \t\n\r\f\v]|\Z)){_LINE}|{_EXECUTED}|{_PLAIN}{_comment(0)[3:]}",
        rest=rf"{_LINE_EITHER}",
        value=f"{_ORACLE_EITHER}|{_DOLLARS_EITHER}|{_PREFIX}(?:{_either(chr(39))})|{_either(chr(34))}",
        name=rf"{_BACKTICKS_EITHER}|\[(?!{_KEY})[^\W\d][\w ]*\](?!\])",
        brackets=_BRACKETS,
        within="",
        placeholder=r"[:?]\d{1,5}(?!\w)|\$\d\d?(?![\w.]|,\d)",  # $ is a currency in SQL Server
    ),
    "sqlite": _pattern(
        drop=rf"--[^\n]*|/\*{_FLAT}",
        value=f"{_PREFIX}{_doubled(chr(39))}|{_doubled(chr(34))}",
        name=rf"{_BACKTICKS}|\[[^\]]*(?:\]|\Z)|{_SQLITE_NAMES}",
        placeholder=r"[:?$@]\d{1,5}(?!\w)",
        apart=r"\s*\"",
    ),
    "postgresql": _pattern(
        drop=rf"--[^\n\r]*|{_NESTED}",
        value=f"[eE]{_escaped(chr(39), _GOES_ON)}|{_PREFIX}{_doubled(chr(39))}|{_DOLLARS}",
        name=_doubled('"'),
        placeholder=r"\$\d{1,5}(?!\w)",
        operators=r"\[\#`",
    ),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "oracle.db": _pattern(
        drop=rf"{_LINE}|/\*{_FLAT}",
        rest="--.*",
        value=f"{_ORACLE}|{_PREFIX}{_doubled(chr(39))}",
        name=_doubled('"'),
        operators=r"\[",
        within=r"$\#",
    ),
    "microsoft.sql_server": _pattern(
        drop=rf"{_LINE}|{_NESTED}",
        rest="--.*",
        value=f"{_PREFIX}{_doubled(chr(39))}|{_doubled(chr(34))}",
        name=r"\[[^\]]*(?:\]\][^\]]*)*(?:\]|\Z)",
        operators=r"\#",
        within=r"$\#",
    ),
}
_QUOTED = re.compile(r"\"[^\"]*(?:\"\"[^\"]*)*\"?|`[^`]*(?:``[^`]*)*`?|\[[^\]]*(?:\]\][^\]]*)*\]?")
#: On one line, and without what later steps could take for something else.
_TAME = re.compile(r"(?:\"[\w $#@./:+-]+\"|`[\w $#@./:+-]+`|\[[\w $#@./:+-]+\])")
_SQLITE_INTO = re.compile(
    rf"(?<!\w)INTO{_SQLITE_GAP}{DOTTED}{_SQLITE_GAP}(?:AS{_SQLITE_GAP}{NAME}{_SQLITE_GAP})?\Z", re.IGNORECASE
)
_BRACKETED = re.compile(rf"'[^']*'|(?<!\w){_NUMBER}|(?<!\w){_KEY}\w*")


def _shown(part: re.Match[str]) -> str:
    kind = part.lastgroup
    if kind == "plain" or kind == "one":
        return part[0]
    if kind == "drop":
        return " "
    if kind == "name":
        if part[0][0] == "(" and _SQLITE_INTO.search(part.string[max(part.start() - 200, 0) : part.start()]) is None:
            return _QUOTED.sub("?", part[0])  # no columns that something is inserted into
        return _QUOTED.sub(_shown_name, part[0])
    if kind == "brackets":
        return _BRACKETED.sub("?", part[0])
    if kind == "number" and part[0][0] in "+-":
        before = part.string[part.start() - 1 : part.start()]
        if before.isalnum() or before in ("_", ")", "]", "'", '"', "?", "`"):  # not a sign
            return part[0][0] + "?"
    return "?"


def _shown_name(name: re.Match[str]) -> str:
    return name[0] if _TAME.fullmatch(name[0]) else "?"


# -- values that nobody quotes --------------------------------------------------------------------------------------

_FIRST = re.compile(r"[\s({?=;]*([A-Za-z]\w*)")


def _shown_of(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"\s*(?:{pattern})(?:(?<==)|(?!\w))", re.IGNORECASE)


_ACCOUNT = _shown_of(
    r"(?:CREATE|ALTER)(?: OR REPLACE)?(?: SHARED| PUBLIC)*(?: USER| ROLE| GROUP| LOGIN| DATABASE LINK| DATABASE SCOPED"
    r"| SERVER| CREDENTIAL| SUBSCRIPTION| MASTER| SYMMETRIC| ASYMMETRIC| CERTIFICATE| APPLICATION)"
    rf"|ALTER (?:SESSION|SYSTEM|DATABASE {NAME}) SET [\w.]+(?: ?=| TO)?"
)
#: What is shown of a statement, by its first word; the rest of it is hidden.
_FIRST_WORDS = {
    "SET": _shown_of(
        r"SET (?:(?:SESSION|LOCAL|GLOBAL|PERSIST|PERSIST_ONLY|STATEMENT) )*"
        rf"(?:(?:TRANSACTION|CONSTRAINTS?|CHARACTERISTICS)\b.*|{DOTTED}(?: ?:?=| TO(?!\w))?)"
    ),
    "CREATE": _ACCOUNT,
    "ALTER": _ACCOUNT,
    "PRAGMA": _shown_of(r"PRAGMA [\w.]+"),
    "ATTACH": _shown_of("ATTACH"),
    "CONNECT": _shown_of("CONNECT"),
    # Of SQLite, where a path may name a user.
    "VACUUM": _shown_of(r"VACUUM(?:(?! INTO(?!\w)).)*(?: INTO)?"),
    # Not values, but there may be as many of these names as there are transactions.
    "SAVEPOINT": _shown_of("SAVEPOINT"),
    "RELEASE": _shown_of("RELEASE(?: SAVEPOINT)?"),
    "ROLLBACK": _shown_of("ROLLBACK(?: WORK| TRANSACTION| TRAN)?(?: TO)?(?: SAVEPOINT)?"),
}
#: SQL Server needs no quotes around the arguments of procedures.
_EXECUTE = re.compile(rf"(?<!\w)(EXEC(?:UTE)?(?!\w)(?: (?!@){DOTTED}(?![\w.]))?)(.*)", re.IGNORECASE)
_IDENTIFIED = re.compile(r"\bIDENTIFIED\b.*", re.IGNORECASE)
#: The rows may follow.
_STDIN = re.compile(r"(\bFROM STDIN\b(?: WITH ?\([^()]*\))?)(.*)", re.IGNORECASE)
#: What stands behind such a FROM is no table. That of a function is another dialect's.
_NO_TABLE = re.compile(
    rf"(\bDISTINCT FROM ?|\((?:(?!\b(?:SELECT|DELETE)\b)(?:[^()]|\([^()]*\)))* FROM ?){_SQLITE_NAME}", re.IGNORECASE
)


def _without_bare_values(text: str, dialect: str) -> str:
    first = _FIRST.match(text)
    lax = dialect == "microsoft.sql_server" or dialect not in _PARTS or not dialect
    if lax and (first is None or first[1].upper() not in VERBS):
        # A procedure with its arguments, for all that is known.
        end = 0 if first is None else first.end()
        return text if end == len(text) else f"{text[:end]} ?".lstrip()
    if ";" in text:
        text = ";".join([_without_rest(one) for one in text.split(";")])
    elif first is not None and first[1].upper() in _FIRST_WORDS:
        text = _without_rest(text)
    upper = text.upper()
    if lax and "EXEC" in upper:
        text = _EXECUTE.sub(_shown_before, text)
    if "IDENTIFIED" in upper:
        text = _IDENTIFIED.sub("IDENTIFIED ?", text)
    if "STDIN" in upper:
        text = _STDIN.sub(_shown_before, text)
    if dialect == "sqlite" and ('FROM "' in upper or 'FROM"' in upper) and ("(" in text or "DISTINCT" in upper):
        text = _NO_TABLE.sub(r"\1?", text)
    return text


def _shown_before(found: re.Match[str]) -> str:
    return f"{found[1]} ?" if found[2].strip(" ;") else found[0]


def _without_rest(one: str) -> str:
    """One statement, shown as far as its first word allows."""
    first = _FIRST.match(one)
    if first is None or (pattern := _FIRST_WORDS.get(first[1].upper())) is None:
        return one
    shown = pattern.match(one)
    if shown is None:
        if pattern is _ACCOUNT:
            return one
        end = first.end()
    else:
        end = shown.end()
    if pattern is _FIRST_WORDS["PRAGMA"]:
        return one[:end]
    rest = one[end:]
    return one if not rest or rest.isspace() else one[:end] + (" ?" if rest[0] == " " or one[end - 1] != "=" else "?")


# -- lists ------------------------------------------------------------------------------------------------------------

_ITEM = (
    r"(?:(?:DATE|TIME|TIMESTAMP|INTERVAL) ?)?(?:[-+]?\?\d*|%s|%\(\w+\)s|[:$@]\w+|NULL|DEFAULT|TRUE|FALSE)"
    r"(?:::\w+(?: \w+)*(?:\(\?\))?(?:\[\])*)?"
)
_ITEMS = rf"{_ITEM}(?: ?, ?{_ITEM})*"
_ROW = rf"(?:ROW ?)?\( ?{_ITEMS} ?\)"
_LISTS = re.compile(
    rf"\( ?(?:{_ITEMS}|{_ROW}(?: ?, ?{_ROW})*) ?\)(?P<rows>(?: ?, ?{_ROW})*)|\[ ?{_ITEMS} ?\]", re.IGNORECASE
)
_BEFORE_LIST = re.compile(r"(?:\A|[^\w$])(?:(IN)|(VALUES?(?: ROW)?)|(ARRAY)) ?\Z", re.IGNORECASE)
#: Rows with more than values in them, one like the other.
_ROWS = re.compile(r"(\bVALUES ?(\((?:[^()]|\([^()]*\))*\)))(?: ?, ?\2)+", re.IGNORECASE)


def _folded(found: re.Match[str]) -> str:
    before = _BEFORE_LIST.search(found.string[max(found.start() - 12, 0) : found.start()])
    if before is None or (found[0][0] == "[") != (before[3] is not None):
        return found[0]
    if before[3]:
        return "[?]"
    return "(?)" + (found["rows"] if before[1] else "")

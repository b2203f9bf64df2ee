"""The text of an ini, edited in place: what is not edited keeps every byte, comments and line ends included.

Lines are told apart as `configparser` does, which is how PasteDeploy reads them.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from typing import NamedTuple

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_WORD = re.compile(r"\S+")
_DELIMITER = re.compile(r"\s*[=:]\s*")
_SECTION = configparser.ConfigParser.SECTCRE
_OPTION = configparser.ConfigParser.OPTCRE


class Word(NamedTuple):
    text: str
    start: int  #: in the whole text
    line: int


class Option(NamedTuple):
    key: str
    first: int  #: line
    end: int  #: line after the last one of its value that is not empty
    words: tuple[Word, ...]

    @property
    def value(self) -> str:
        return " ".join(word.text for word in self.words)


class Section(NamedTuple):
    name: str
    header: int  #: line
    options: dict[str, Option]

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def called(self) -> str:
        """What others call it by."""
        return self.name.partition(":")[2].strip()

    def value(self, key: str) -> str | None:
        option = self.options.get(key)
        return None if option is None else option.value


class IniText:
    """A text that is an ini: somebody has parsed it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines: list[str] = _LINE.findall(text)
        self.starts: list[int] = []
        start = 0
        for line in self.lines:
            self.starts.append(start)
            start += len(line)
        self.sections: list[Section] = []
        self._scan()

    def _scan(self) -> None:
        """Find sections and options, with the rules of configparser for indented lines, comments and empty lines."""
        indent, key = 0, ""
        for number, line in enumerate(self.lines):
            bare = line.strip()
            if not bare or bare[0] in "#;":
                continue
            column = len(line) - len(line.lstrip())
            if key and column > indent:
                options = self.sections[-1].options
                more = tuple(self._words(number, column))
                options[key] = options[key]._replace(end=number + 1, words=options[key].words + more)
                continue
            indent = column
            header = _SECTION.match(bare)
            if header is not None:
                self.sections.append(Section(header.group("header"), number, {}))
                key = ""
                continue
            option = _OPTION.match(bare)
            if option is not None and self.sections:
                key = option.group("option").rstrip()
                words = tuple(self._words(number, column + option.start("value")))
                self.sections[-1].options[key] = Option(key, number, number + 1, words)

    def _words(self, number: int, column: int) -> Iterator[Word]:
        for match in _WORD.finditer(self.lines[number], column):
            yield Word(match.group(), self.starts[number] + match.start(), number)

    # -- what there is ---------------------------------------------------------------------------------------------

    def section(self, kinds: tuple[str, ...], called: str) -> Section | None:
        return next((one for one in self.sections if one.kind in kinds and one.called == called), None)

    def named(self, name: str) -> Section:
        return next(one for one in self.sections if one.name == name)

    def indent_of(self, number: int) -> str:
        line = self.lines[number]
        return line[: len(line) - len(line.lstrip(" \t"))]

    def end_of_line(self, number: int) -> str:
        """Of a line; of the first line of all where that one has none."""
        line = self.lines[number]
        end = line[len(line.rstrip("\r\n")) :]
        return end or (self.end_of_line(0) if number else "\n")

    # -- edits: each returns the new text --------------------------------------------------------------------------

    def _with(self, start: int, end: int, new: str) -> str:
        return self.text[:start] + new + self.text[end:]

    def with_first_word(self, option: Option, word: str) -> str:
        """Put `word` before the others of a value: on a line of its own where each of them has one."""
        first = option.words[0]
        others = [one for one in option.words[1:] if one.line == first.line]
        later = next((one for one in option.words if one.line > first.line), None)
        between = " "
        if not others and (later is not None or first.line > option.first):
            indent = self.indent_of(first.line if later is None else later.line)
            between = self.end_of_line(first.line) + indent
        return self._with(first.start, first.start, word + between)

    def without_word(self, option: Option, word: Word) -> str:
        """Take away a word and the space after it, so that the next one stands in its place."""
        end = word.start + len(word.text)
        rest = self.text[end:]
        after = end + len(rest) - len(rest.lstrip())
        if self.text[after : after + 1] in ("#", ";"):  # a comment has to keep a line of its own
            after = end
            if self.lines[word.line].strip() == word.text:
                start = self.starts[word.line]
                return self._with(start, start + len(self.lines[word.line]), "")
        return self._with(word.start, after, "")

    def with_word(self, word: Word, new: str) -> str:
        """Put another word in the place of one."""
        return self._with(word.start, word.start + len(word.text), new)

    def with_option(self, section: Section, key: str, value: str) -> str:
        """Add an option to a section that has some: after `use` if it is there, and written like that one."""
        anchor = section.options.get("use") or next(iter(section.options.values()))
        line = self.lines[anchor.first]
        written = line.lstrip()[len(anchor.key) :]
        found = _DELIMITER.match(written)
        delimiter = found.group() if found and anchor.words and anchor.words[0].line == anchor.first else " = "
        padding = len(delimiter) - len(delimiter.lstrip())
        if padding > 1:  # delimiters that stand below each other
            delimiter = " " * max(1, len(anchor.key) + padding - len(key)) + delimiter.lstrip()
        new = f"{self.indent_of(anchor.first)}{key}{delimiter}{value}"
        last = anchor.end - 1
        end = self.end_of_line(last)
        at = self.starts[last] + len(self.lines[last])
        if self.lines[last].endswith(("\r", "\n")):
            return self._with(at, at, new + end)
        return self._with(at, at, end + new)

    def without_option(self, option: Option) -> str:
        start = self.starts[option.first]
        last = option.end - 1
        end = self.starts[last] + len(self.lines[last])
        if not self.lines[last].endswith(("\r", "\n")):  # the file's last line: its last one still has no end
            start = len(self.text[:start].rstrip("\r\n")) if option.first else start
        return self._with(start, end, "")

    def with_section(self, before: Section, name: str, options: dict[str, str]) -> str:
        """Put a section, and an empty line, before another one and the comment that belongs to that."""
        number = before.header
        indent, end = self.indent_of(number), self.end_of_line(number)
        while number and self.lines[number - 1].strip()[:1] in ("#", ";") and self.lines[number - 1].strip():
            number -= 1
        if number == 0 or self.lines[number - 1].strip():
            number = before.header  # what stands at the very top is the file's, and else the former section's
        lines = [f"[{name}]", *(f"{key} = {value}" for key, value in options.items())]
        text = "".join(f"{indent}{line}{end}" for line in lines) + end
        return self._with(self.starts[number], self.starts[number], text)

    def without_section(self, section: Section) -> str:
        """Take away a section and the empty lines after it."""
        count = len(self.lines)
        number = max((option.end for option in section.options.values()), default=section.header + 1)
        while number < count and not self.lines[number].strip():
            number += 1
        start = self.starts[section.header]
        if number < count:
            return self._with(start, self.starts[number], "")
        kept = self.text[:start]
        return kept.rstrip() + self.end_of_line(section.header) if kept.strip() else ""

    def has_comment(self, section: Section) -> bool:
        """Whether there is one between its header and its end, or directly below."""
        number = section.header + 1
        while number < len(self.lines) and self.lines[number].strip():
            if self.lines[number].strip()[0] in "#;":
                return True
            number += 1
        return False

    def with_name(self, section: Section, name: str) -> str:
        """Give a section another name."""
        line = self.lines[section.header]
        at = self.starts[section.header] + line.index(section.name)
        return self._with(at, at + len(section.name), name)

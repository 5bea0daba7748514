"""Reads and checks text, JSON and YAML from outside, so that each check exists once.

Text is UTF-8, a byte order mark at its start is dropped, and text with half of a surrogate pair is rejected, since
tokenizers and files do not accept it. JSON and YAML must give every key once and nest at most `MAX_DEPTH` levels; JSON
must not hold NaN or infinity unless the caller allows it; YAML's aliases must not expand beyond `MAX_NODES`. Functions
take the class of error to raise, since the caller knows what the text is for. This module does not know what the values
mean.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import yaml

from specexp.addresses import mask
from specexp.errors import SpecexpError, shown

BOM = "\ufeff"
MAX_DEPTH = 100  # levels of lists and mappings
MAX_NODES = 10_000  # values of a YAML document, with every repetition by an alias counted
_TOO_DEEP = f"nested too deep. At most {MAX_DEPTH} levels are read."
MAX_SETTINGS_BYTES = 1 << 20  # size limit of a file of settings or facts
Error = type[SpecexpError]


def path_of(name: str, what: str, error: Error) -> Path:
    """A path from its name, `~` expanded; raises `error` for an invalid file name. `what` begins the message."""
    try:
        path = Path(name).expanduser()
        path.lstat()
    except (RuntimeError, ValueError) as why:  # for an unknown home; for a NUL
        reason = "it holds a NUL character" if "\0" in name else str(why).rstrip(".")
        raise error(f"{what} {shown(name)} is not a path: {reason}.") from why
    except OSError as why:
        if why.errno == errno.ENAMETOOLONG:
            raise error(f"{what} {shown(name)} is not a path: it is too long ({len(name)} characters).") from why
    return path


def folder_of(address: str, what: str, error: Error, others: str) -> Path:
    """An existing folder, by path or file address; `others` names, for messages, the other addresses that are valid."""
    scheme, _, rest = address.partition("://")
    if rest and scheme != "file":
        named = mask(address)
        raise error(
            f"{what} '{named:.200}' is an address of kind {scheme:.40}, which is not read; give a folder, {others}."
        )
    path = path_of(url2pathname(urlsplit(address).path) if rest else address, what, error)
    if path.exists() and not path.is_dir():
        raise error(f"{what} '{address}' is a file; give the folder that it is in.")
    if not path.is_dir():
        raise error(f"{what} '{address}' does not exist; give a folder, {others}.")
    return path


def read_bytes(path: Path, what: str, error: Error, most: int | None = MAX_SETTINGS_BYTES) -> bytes:
    """Read a file of at most `most` bytes; `what` ("config file") begins the message."""
    try:
        with path.open("rb") as file:
            data = file.read() if most is None else file.read(most + 1)
    except (OSError, ValueError) as why:
        reason = getattr(why, "strerror", None) or why
        raise error(f"{what} '{path}' cannot be read: {reason}.") from why
    if most is not None and len(data) > most:
        raise error(f"{what} '{path}' has more than {most:,} bytes; this is not such a file.")
    return data


def decode(data: bytes, where: str, error: Error, way_out: str = "; save it as UTF-8.", offset: int = 0) -> str:
    """Decode UTF-8 bytes, and drop a byte order mark. `offset` is where the bytes begin in their file."""
    try:
        return data.decode("utf-8").removeprefix(BOM)
    except UnicodeDecodeError as why:
        kind = ", as UTF-16 begins" if data[:2] in (b"\xff\xfe", b"\xfe\xff") and not offset else ""
        raise error(_said(where, f"not UTF-8 text (byte {offset + why.start}{kind}){way_out}")) from why


def _said(where: str, what: str) -> str:
    """A message about `where`: `mine.yaml: not JSON`, but `the body is not JSON`."""
    return f"{where} is {what}" if where.startswith(("the ", "standard ")) else f"{where}: {what}"


def surrogate(text: str) -> str | None:
    """The first unpaired surrogate in `text`, or None."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as why:
        return text[why.start]
    return None


def check_text(text: str, what: str, error: Error, from_bytes: bool = False) -> None:
    """Raise `error` if the text contains an unpaired surrogate; `what` names the text in the message.

    Python decodes command-line bytes that are not UTF-8 to surrogates; with `from_bytes` the message shows the byte.
    """
    if (half := surrogate(text)) is not None:
        if from_bytes and "\udc80" <= half <= "\udcff":
            raise error(f"{what} holds the byte 0x{ord(half) - 0xDC00:02x}, which is not UTF-8; give it as UTF-8 text.")
        raise error(f"{what} holds {half!r}, half of a character; give it as UTF-8 text.")


def check_value(value: Any, where: str, error: Error) -> None:
    """Raise `error` for values that are nested too deep, or contain a text with an unpaired surrogate."""
    waiting: list[tuple[Any, str, int]] = [(value, "", 1)]
    while waiting:
        result, place, depth = waiting.pop()
        if depth > MAX_DEPTH + 1:
            raise error(_said(where, _TOO_DEEP))
        if isinstance(result, str):
            if surrogate(result):
                check_text(result, f"{where}: '{place}'" if place else where, error)
        elif isinstance(result, dict):
            for name, part in result.items():
                if isinstance(name, str):
                    check_text(name, f"{where}: a key", error)
                waiting.append((part, f"{place}.{name}".lstrip("."), depth + 1))
        elif isinstance(result, list | tuple):
            waiting += [(part, f"{place}[{i}]", depth + 1) for i, part in enumerate(result)]


def parse_json(text: str, where: str, error: Error, hint: str = "", constants: bool = False) -> Any:
    """Parse JSON. `hint` ends the message if the text is not JSON; with `constants`, NaN and infinity are accepted."""

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise error(f"{where}: {shown(twice)} is given twice; give it once.")
        return result

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON value")

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=None if constants else constant)
    except RecursionError as why:
        raise error(_said(where, _TOO_DEEP)) from why
    except ValueError as why:
        raise error(_said(where, f"not JSON: {why}{hint}.")) from why
    check_value(value, where, error)
    return value


def parse_yaml(text: str, where: str, error: Error) -> Any:
    """Parse a YAML document of plain values."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    # Malformed text raises YAMLError; an invalid tagged value (`!!bool x`, an impossible date) can raise anything.
    except Exception as why:
        words = " ".join(str(why).split()) or type(why).__name__
        if isinstance(why, yaml.MarkedYAMLError) and why.problem_mark is not None:
            words = f"{why.problem} (line {why.problem_mark.line + 1}, column {why.problem_mark.column + 1})"
        raise error(f"{where}: not valid YAML: {words:.500}") from why
    check_value(value, where, error)
    return value


class _Loader(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys, of which the plain loader silently keeps the last, and documents that
    are nested too deep or become too large when aliases are expanded."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[str, int] = {}  # by anchor: number of values below it, aliases expanded
        self._size = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)
            if name in self.anchors and name not in self._sizes:
                raise yaml.composer.ComposerError(None, None, f"'*{name}' is part of itself", mark)
            node = super().compose_node(parent, index)
            self._grow(self._sizes[name], mark)
            return node
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        before, anchor = self._size, event.anchor
        self._grow(1, mark)
        node = super().compose_node(parent, index)
        if anchor is not None:
            self._sizes[anchor] = self._size - before
        self._depth -= 1
        return node

    def _grow(self, count: int, mark: Any) -> None:
        self._size += count
        if self._size > MAX_NODES:
            message = f"more than {MAX_NODES:,} values, as aliases are followed"
            raise yaml.composer.ComposerError(None, None, message, mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                message = f"{shown(key)} cannot be a key"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

"""Values of a manifest's fields as the programs write them that make manifests.

pandas and datasets turn whole numbers into floats (``0.0``) where a column has a gap, the gap into null or NaN, and
tables kept as text turn numbers and lists into text (``"12.5"``, ``"[...]"``), and a gap into an empty one. All of that
is taken for what it was. What is not plain (half a frame, a truth value, an id whose digits a float has lost) raises
Rejected.
"""

import json
import math
import re
from typing import Any

from megatron_music.songs.song import Rejected

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_EXACT = 2**53
"""Whole numbers above it have no float of their own."""


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


_decode = json.JSONDecoder(parse_constant=_constant).decode


def parse(text: str) -> Any:
    """Parses a JSON text; NaN, which is not JSON but what pandas and Python write for what is missing, is null.

    Raises Rejected where it is none.
    """
    try:
        return _decode(text)
    except (ValueError, RecursionError) as error:
        raise Rejected("not_json", str(error)) from None


def parse_line(line: bytes) -> dict[str, Any]:
    """Parses a line of JSON lines, which is an object; as ``parse``."""
    try:
        content = parse(line.decode("utf-8").lstrip("\ufeff"))
    except UnicodeDecodeError as error:
        raise Rejected("not_utf8", f"byte {error.start} of the line is not UTF-8", error.start) from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise Rejected("not_json", f"the line holds a {kind}, not an object of fields", kind)
    return content


def number(value: Any, where: str) -> int | float:
    """A finite number, or a text that is one."""
    found = value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        found = float(value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise Rejected("wrong_type", f"{where} is {shown(value)}, not a number", shown(value))
    try:
        finite = math.isfinite(found)
    except OverflowError:
        finite = False
    if not finite:
        raise Rejected("wrong_type", f"{where} is not a finite number", shown(value))
    return found


def whole_number(value: Any, where: str) -> int:
    """A whole number, as such, as a float or as a text."""
    found = number(value, where)
    if found != int(found):
        raise Rejected("wrong_type", f"{where} is {shown(value)}, not a whole number", shown(value))
    return int(found)


def text(value: Any, where: str) -> str:
    """A text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"{where} is {shown(value)}, not a text", shown(value))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Rejected("not_utf8", f"{where} holds half of a surrogate pair") from None
    return value


def song_id(value: Any) -> str:
    """The id, a text; of a number, its digits."""
    if isinstance(value, float) and value.is_integer():
        if abs(value) > _EXACT:
            detail = f"id is {shown(value)}, a float that may have lost digits; write ids as text"
            raise Rejected("wrong_type", detail, shown(value))
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise Rejected("wrong_type", f"id is {shown(value)}, not a text", shown(value))
    return text(value, "id")


def items(value: Any, kind: type, noun: str, where: str) -> Any:
    """A list or an object, or a text that is one in JSON; an empty one for null and for an empty text."""
    if value is None or value == "":
        return kind()
    found = value
    if isinstance(value, str):
        try:
            found = parse(value)
        except Rejected:
            found = None
    if not isinstance(found, kind):
        raise Rejected("wrong_type", f"{where} is {shown(value)}, not {noun}", shown(value))
    return found


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    written = repr(value)
    return written if len(written) <= 40 else written[:37] + "..."

"""Which song a person means who writes an id, or a pattern of ids."""

import unicodedata
from fnmatch import fnmatchcase


def plain(id: str) -> str:
    """An id as ids are compared: in one form of Unicode, whichever of the two its file's name or the keyboard has."""
    return unicodedata.normalize("NFC", id)


def names(pattern: str, id: str) -> bool:
    """Whether ``pattern`` fits the id, as ``label/*`` does, or is the id as it stands, which may have a ``[`` in it."""
    pattern, id = plain(pattern), plain(id)
    return pattern == id or fnmatchcase(id, pattern)

"""What a token is, stored as one byte beside its id.

Vocal, accompaniment and mix codes share one id range, so that the kind can't be told from the id alone.
"""

import enum


class Kind(enum.IntEnum):
    """The kind of one token of a document."""

    TEXT = 0
    SPECIAL = 1
    VOCAL = 2
    ACCOMPANIMENT = 3
    MIX = 4
    SPEECH = 5
    CODEBOOK_1 = 6
    CODEBOOK_2 = 7
    CODEBOOK_3 = 8
    CODEBOOK_4 = 9
    CODEBOOK_5 = 10
    CODEBOOK_6 = 11
    CODEBOOK_7 = 12


CODEBOOK_KINDS: tuple[Kind, ...] = tuple(kind for kind in Kind if kind.name.startswith("CODEBOOK_"))
"""Kinds of residual codes: ``CODEBOOK_KINDS[k - 1]`` is the kind of codebook ``k``, whatever the track."""

TRACK_KINDS: dict[str, Kind] = {"mix": Kind.MIX, "vocals": Kind.VOCAL, "accompaniment": Kind.ACCOMPANIMENT}
"""Kind of the codebook-0 codes of each track."""

COARSE_KINDS: tuple[Kind, ...] = (Kind.VOCAL, Kind.ACCOMPANIMENT, Kind.MIX, Kind.SPEECH)
"""Kinds of codebook-0 codes."""

AUDIO_KINDS: tuple[Kind, ...] = (*COARSE_KINDS, *CODEBOOK_KINDS)

LOSS_GROUPS: dict[str, tuple[Kind, ...]] = {
    "text": (Kind.TEXT,),
    "special": (Kind.SPECIAL,),
    "vocal": (Kind.VOCAL,),
    "accompaniment": (Kind.ACCOMPANIMENT,),
    "mix": (Kind.MIX,),
    "speech": (Kind.SPEECH,),
    "residual": CODEBOOK_KINDS,
}
"""The groups that a loss is reported for; every kind is in exactly one."""

COARSE_GROUPS: tuple[str, ...] = tuple(kind.name.lower() for kind in COARSE_KINDS)
"""Those of codebook-0 codes, the only ones that stage 1 learns."""

AUDIO_GROUPS: tuple[str, ...] = (*COARSE_GROUPS, "residual")
"""Those of all codes."""

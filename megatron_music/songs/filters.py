"""Rules about the lyrics of a song."""

import re

from megatron_music.songs.song import Segment

_TIME_STAMPS = re.compile(r"^\s*(?:[\[<]\d{1,3}:\d{2}(?:[.:]\d{1,3})?[\]>]\s*)+")
_CREDIT = (
    r"(?:lyrics?|words|music|written|composed|composer|lyricist|produced|producers?|arranged|arranger|arrangement|"
    r"performed|recorded|mixed|mixing|mastered|mastering|vocals?|guitars?|bass|drums|publisher|label)"
)
_CREDIT_ZH = (
    r"(?:作?[词詞曲]|作[词詞]者|作曲者|[编編]曲|演唱|原唱|[制製]作人?|"
    r"[录錄]音|混音|母[带帶]|出品|[发發]行|吉他|和[声聲]|[监監]制)"
)
_IRRELEVANT = re.compile(
    "|".join(
        [
            r"https?://|www\.|\w@\w+\.\w",
            rf"^\s*{_CREDIT}(?:\s+and\s+{_CREDIT})*\s*(?:by\b|[:：])",
            rf"^\s*{_CREDIT_ZH}(?:\s*[/／、&]\s*{_CREDIT_ZH})*\s*[:：]",
            r"©|\bcopyright\b|\ball rights reserved\b",
            r"^\s*\d*\s*embed\s*$|^\s*you might also like\s*$|^\s*\d+ contributors?\b|^\s*see .* live\b.*\btickets\b",
            r"^\s*[(\[]?\s*[x×]\s*\d+\s*[)\]]?\s*$|^\s*[(\[]?\s*\d+\s*[x×]\s*[)\]]?\s*$",
            r"^\s*(?:lyrics|instrumental|music video|repeat chorus)\s*$",
        ]
    ),
    re.IGNORECASE,
)


def without_irrelevant_text(text: str) -> str:
    """A segment's text without time stamps and without lines that nobody sings.

    Such lines are credits, links, copyright notices, repeat counts, and what lyrics sites put around a text. The label
    line and empty lines stay.
    """
    lines = [_TIME_STAMPS.sub("", line) for line in text.split("\n")]
    return "\n".join(line for line in lines if not _IRRELEVANT.search(line))


def count_lines(segments: list[Segment]) -> int:
    """Lines that are sung, over all segments."""
    return sum(len(segment.lines) for segment in segments)

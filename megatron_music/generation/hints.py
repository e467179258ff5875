"""What may go wrong with a prompt that is well formed: told to the user, who sings all the same."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import parse_json, read_text
from megatron_music.songs.lyric_rows import Remark
from megatron_music.songs.lyrics import Lyrics
from megatron_music.songs.song import split_tags
from megatron_music.vocabulary.text import TextTokenizer

# Scripts of the languages that YuE was trained on: English, Mandarin, Cantonese, Japanese, Korean.
KNOWN_SCRIPTS = ("LATIN", "CJK", "HIRAGANA", "KATAKANA", "HANGUL")
FOREIGN_SHARE = 0.2
LONGEST_TAG_WORDS = 4
MOST_LINES = 8


def read_known_tags(path: str | Path) -> list[str]:
    """Tags of a file: one a line, or JSON as YuE's ``top_200_tags.json``, lists of tags by kind.

    Raises:
        InputError: the file is missing or holds no tags.
    """
    text = read_text(path)
    if str(path).endswith(".json"):
        content = parse_json(text, path)
        lists = list(content.values()) if isinstance(content, dict) else [content]
        tags = [tag for tags in lists if isinstance(tags, list) for tag in tags if isinstance(tag, str)]
    else:
        tags = [line.strip() for line in text.splitlines() if line.strip()]
    if not tags:
        raise InputError(path, "holds no tags", "write one a line, or JSON lists by kind")
    return tags


def unknown_tags(tags: str, known: Sequence[str]) -> list[str]:
    """The tags of a line that are not known, whatever their case; between spaces the longest known ones are taken."""
    folded = {tag.casefold() for tag in known}
    words = split_tags(tags)
    unknown, place = [], 0
    while place < len(words):
        for length in range(LONGEST_TAG_WORDS, 0, -1):
            if " ".join(words[place : place + length]).casefold() in folded:
                place += length
                break
        else:
            unknown.append(words[place])
            place += 1
    return unknown


def tag_hints(tags: str, known: Sequence[str]) -> list[str]:
    """One line for each tag that is not known, with the nearest one that is."""
    hints = []
    for tag in unknown_tags(tags, known):
        near = difflib.get_close_matches(tag, known, n=1)
        hints.append(f"tags: {tag!r} is not among the known ones" + (f"; did you mean {near[0]!r}?" if near else ""))
    return hints


def language_hints(lyrics: Sequence[str], tokenizer: TextTokenizer) -> list[str]:
    """A line where more than a fifth of the letters are of a script that neither YuE nor the tokenizer knows."""
    letters = [letter for text in lyrics for letter in re.sub(r"\[[^\]]*\]", "", text) if letter.isalpha()]
    foreign: dict[str, set[str]] = {}
    count = 0
    for letter in letters:
        script = unicodedata.name(letter, "UNKNOWN").split()[0]
        if script not in KNOWN_SCRIPTS:
            foreign.setdefault(script, set()).add(letter)
            count += 1
    unknown = [script for script, found in foreign.items() if not _has_pieces(found, tokenizer)]
    if not unknown or count <= FOREIGN_SHARE * len(letters):
        return []
    names = ", ".join(script.capitalize() for script in unknown)
    return [f"lyrics: the text tokenizer spells {names} letters in bytes; the models have hardly seen this language"]


def lyrics_hints(lyrics: Lyrics, where: object) -> list[str]:
    """What was left out of the lyrics or guessed, one line for each rule; and a line where sections have no label."""
    by_rule: dict[str, list[Remark]] = {}
    for remark in lyrics.remarks:
        by_rule.setdefault(remark.rule, []).append(remark)
    hints = []
    for first, *others in by_rule.values():
        numbers = sorted({remark.line for remark in others} - {first.line})
        named = ", ".join(map(str, numbers[:MOST_LINES])) + (", ..." if len(numbers) > MOST_LINES else "")
        hints.append(
            f"{where}: {first}" + (f"; the same on line{'s' if len(numbers) > 1 else ''} {named}" if numbers else "")
        )
    unlabelled = [section.lines[0].number for section in lyrics.sections if not section.label]
    if unlabelled:
        hints.append(
            f"{where}: line {unlabelled[0]}: is sung without a label; models follow lines below a [verse] better"
        )
    return hints


def _has_pieces(letters: set[str], tokenizer: TextTokenizer) -> bool:
    """Whether most of the letters have a piece of their own."""
    spelled = sum(any(tokenizer.piece(id).startswith("<0x") for id in tokenizer.encode(letter)) for letter in letters)
    return 2 * spelled < len(letters)

"""The answers of a listening test: one line each, on the disk before the rater sees the next pair."""

import fcntl
import json
import os
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from megatron_music.errors import InputError
from megatron_music.evaluation.listening.statistics import Answer
from megatron_music.evaluation.listening.study import ANSWERS, Study
from megatron_music.recipe.fields import Strict
from megatron_music.recipe.recipe import parse_strict

Choice = Literal["a", "b", "tie"]


class AnswerLine(Strict):
    """What one rater said of one pair.

    Attributes:
        pair: its token.
        a, b: tokens of the clips on these sides.
        choices: the better side by aspect.
        heard_s: seconds that each side was heard.
        time: when, ISO 8601 in UTC.
    """

    model_config = ConfigDict(strict=True)

    rater: str
    pair: str
    a: str
    b: str
    choices: dict[str, Choice]
    heard_s: dict[Literal["a", "b"], float]
    time: str


class AlreadyAnswered(ValueError):
    """The rater has answered this pair before, perhaps in another window."""


def append_answer(folder: str | Path, line: AnswerLine) -> None:
    """Adds an answer durably; several processes may do so at a time.

    Raises AlreadyAnswered where the rater has judged the pair before: the first answer counts.
    """
    with open(Path(folder) / ANSWERS, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lines, whole = _whole_lines(file)
        if any((known.rater, known.pair) == (line.rater, line.pair) for known in _parsed(lines, file.name)):
            raise AlreadyAnswered(line.pair)
        file.truncate(whole)  # half a line, of a process that was killed
        file.write(json.dumps(line.model_dump(mode="json"), ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_answers(folder: str | Path) -> list[AnswerLine]:
    """All answers in their order, half a line at the end left out; raises InputError for a line that is none."""
    path = Path(folder) / ANSWERS
    if not path.exists():
        return []
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return _parsed(_whole_lines(file)[0], path)


def _whole_lines(file) -> tuple[list[bytes], int]:
    """The lines that have an end, and where the last of them ends."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    return content[:whole].splitlines(), whole


def _parsed(lines: list[bytes], path: str | Path) -> list[AnswerLine]:
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}: line {number}"
        try:
            content = json.loads(line)
        except ValueError:
            raise InputError(where, "is not JSON", "take the line out") from None
        found.append(parse_strict(AnswerLine, content, where))
    return found


def answers_of(study: Study, lines: list[AnswerLine]) -> list[Answer]:
    """The answers by system and song, first and second as in the study's pairs, whichever side they were on.

    Raises InputError for an answer about clips of another test.
    """
    clips = {clip.token: clip for clip in study.clips}
    pairs = {pair.token: pair for pair in study.pairs}
    found = []
    for line in lines:
        pair = pairs.get(line.pair)
        if pair is None or {line.a, line.b} != {pair.first, pair.second}:
            raise InputError(ANSWERS, f"{line.rater} judged a pair that is not in this test", "take the line out")
        sign = 1 if line.a == pair.first else -1
        values = {"a": sign, "b": -sign, "tie": 0}
        first, second = clips[pair.first], clips[pair.second]
        preferences = {aspect: values[choice] for aspect, choice in line.choices.items()}
        found.append(Answer(line.rater, first.system, first.song, second.system, second.song, preferences))
    return found

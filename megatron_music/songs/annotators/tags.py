"""Tags by an audio-language model: it hears an excerpt and answers a form."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, PositiveInt

from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.pretrained import load_pretrained, named_weights
from megatron_music.songs.annotators import common
from megatron_music.songs.song import Rejected, Song

_EXAMPLE = "Qwen/Qwen2-Audio-7B-Instruct"
QUESTION = (
    "Listen to this song and fill in the form with short tags of one to three English words, separated by commas. "
    "Write nothing else. Write none where there is no voice.\n"
    "Genre:\nInstrument:\nMood:\nVocal gender:\nVocal timbre:"
)
_NAMES = {
    "genre": r"(?:music(?:al)?\s+)?(?:genre|style)s?",
    "instrument": r"instruments?|instrumentation",
    "mood": r"moods?|emotions?",
    "gender": r"(?:vocal|voice|singer)?(?:'?s)?\s*gender",
    "timbre": r"(?:vocal|voice)?\s*timbres?",
}
_FIELD = re.compile(
    "|".join(rf"(?P<{kind}>\b(?:{name})\s*\**\s*[:：])" for kind, name in _NAMES.items()), re.IGNORECASE
)
_NOTHING = {
    "none",
    "n/a",
    "na",
    "unknown",
    "unclear",
    "unspecified",
    "not specified",
    "no vocals",
    "no voice",
    "no vocal",
}
_ONE_GENRE = re.compile(r"\b(drum|rhythm|rock|r) and (bass|blues|roll|b)\b", re.IGNORECASE)
_LONGEST_WORDS = 3


class Tags:
    """Sets ``Song.genres`` (genre, instrument and mood, separated by ``", "``), ``vocal_gender`` and ``vocal_timbre``.

    The voice stands apart because YuE's recipe adds it in annealing only. The model answers greedily, so that a song
    gets the same tags in every run. Each field is filled where it is empty; a song of which the model says nothing
    that can be read stays as it is, for a song without tags is a legal song. One excerpt speaks for the song: what
    comes later (a choir, a guitar solo) is missed.
    """

    name = "tags"

    class Options(common.NetworkOptions):
        """Options of ``tags``.

        Attributes:
            weights: a folder of a Qwen2-Audio model with its processor, or a name on the hub.
            known: a JSON file with lists of tags that may be used, under ``genre``, ``instrument``, ``mood``,
                ``gender`` and ``timbre`` (as YuE's list of 200 each); others are dropped. A kind that it lacks is free.
            seconds: length of the excerpt, from the middle of the song; the model hears no more than 30.
            tokens: most tokens of an answer.
        """

        known: str | None = None
        seconds: float = Field(30.0, gt=0, le=30.0)
        tokens: PositiveInt = 128

    def __init__(self, options: "Tags.Options", device: str):
        self.options, self.device = options, device
        self._known = {} if options.known is None else read_known_tags(options.known)
        weights = common.needed_weights(self.name, options.weights, "a folder of Qwen2-Audio", _EXAMPLE)
        self.model, self.processor = _load(weights, device)
        self.sample_rate = self.processor.feature_extractor.sampling_rate

    def annotate(self, song: Song, out: Path) -> Song:
        """Raises Rejected where the audio can't be read or the model fails on it."""
        fields = ("vocal_gender", "vocal_timbre")
        if song.genres and all(name in song.extra for name in fields) and not self.options.overwrite:
            return song
        found = parse_answer(self.answer(common.hear(song, "mix", self.sample_rate)), self._known)
        told = {
            "genres": ", ".join(tag for kind in ("genre", "instrument", "mood") for tag in found[kind]),
            "vocal_gender": ", ".join(found["gender"]),
            "vocal_timbre": ", ".join(found["timbre"]),
        }
        genres = told["genres"] if told["genres"] and (self.options.overwrite or not song.genres) else song.genres
        voice = {
            name: told[name] for name in fields if told[name] and (self.options.overwrite or not song.extra.get(name))
        }
        return replace(song, genres=genres, extra={**song.extra, **voice})

    def answer(self, samples: np.ndarray) -> str:
        """What the model says of float32 (S,) at its sample rate; raises Rejected where it fails."""
        length = min(len(samples), round(self.options.seconds * self.sample_rate))
        start = (len(samples) - length) // 2
        content = [{"type": "audio", "audio": samples[start : start + length]}, {"type": "text", "text": QUESTION}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(
            text=prompt,
            audio=[samples[start : start + length]],
            sampling_rate=self.sample_rate,
            return_tensors="pt",
        ).to(self.device, self.model.dtype)
        try:
            with torch.inference_mode():
                ids = self.model.generate(**inputs, max_new_tokens=self.options.tokens, do_sample=False)
        except RuntimeError as error:  # one song that a network can't take must not stop a run of a week
            raise Rejected("tagging_failed", str(error)) from None
        new_ids = ids[0, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(new_ids, skip_special_tokens=True)


def parse_answer(answer: str, known: Mapping[str, Sequence[str]] | None = None) -> dict[str, list[str]]:
    """Tags by kind (``genre``, ``instrument``, ``mood``, ``gender``, ``timbre``) of an answer in the form's fields.

    Fields may come in any order, in one line or many, with bullets or bold. Tags are lower-cased, and once each; with
    ``known``, only those on its list of the kind, as they are spelt there. More than three words are no tag.
    """
    tags: dict[str, list[str]] = {kind: [] for kind in _NAMES}
    fields = list(_FIELD.finditer(answer))
    ends = [*(field.start() for field in fields[1:]), len(answer)][: len(fields)]
    for field, end in zip(fields, ends, strict=True):
        text = _ONE_GENRE.sub(r"\1 & \2", answer[field.end() : end])
        tags[field.lastgroup] += re.split(r"[,;/、，\n]|\band\b", text)
    return {kind: _cleaned(found, (known or {}).get(kind)) for kind, found in tags.items()}


def read_known_tags(path: str | Path) -> dict[str, list[str]]:
    """Reads lists of tags by kind; raises InputError where the file is something else."""
    content = read_json(path)
    if not isinstance(content, dict) or not set(content) & set(_NAMES):
        raise InputError(path, "has no lists of tags", f"give lists under {', '.join(_NAMES)}")
    for kind in set(content) & set(_NAMES):
        if not isinstance(content[kind], list) or not all(isinstance(tag, str) for tag in content[kind]):
            raise InputError(f"{path}: {kind}", "is not a list of texts", "mend the file")
    return {kind: content[kind] for kind in _NAMES if kind in content}


def _cleaned(tags: Iterable[str], known: Sequence[str] | None) -> list[str]:
    spelling: dict[str, str] = {}
    for tag in known or ():
        # Of `Pop` and `pop` the lower-case one, which the model's tags are too.
        if _folded(tag) not in spelling or tag.islower():
            spelling[_folded(tag)] = tag
    kept: dict[str, None] = {}
    for tag in tags:
        tag = tag.strip(" \t.*-–•\"'()[]").lower()
        if not tag or tag in _NOTHING or len(tag.split()) > _LONGEST_WORDS:
            continue
        if known is None or _folded(tag) in spelling:
            kept[spelling.get(_folded(tag), tag)] = None
    return list(kept)


def _folded(tag: str) -> str:
    """Hip-Hop, hip hop and hiphop are one, and drum and bass is drum & bass."""
    return re.sub(r"\s+and\s+|[\s_&-]+", "", tag.casefold())


def _load(weights: str, device: str) -> tuple:
    """Model, in the precision of the device, and processor."""
    from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

    weights, mend = named_weights(weights, _EXAMPLE, "qwen2_audio"), "check the name or the files"
    dtype = torch.float32 if device.startswith("cpu") else torch.bfloat16
    model = load_pretrained(Qwen2AudioForConditionalGeneration, weights, "Qwen2-Audio", mend, dtype=dtype)
    try:
        processor = Qwen2AudioProcessor.from_pretrained(weights, local_files_only=Path(weights).is_dir())
    except Exception as error:  # of any type, as those of a model
        raise InputError(weights, f"can't be loaded as Qwen2-Audio's processor ({error})", mend) from None
    return model.eval().requires_grad_(False).to(device), processor

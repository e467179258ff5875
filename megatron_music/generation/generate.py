"""The verb `generate`: files and options to requests, songs to folders."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from megatron_music.conversion.export import refuse_foreign_folder
from megatron_music.errors import InputError
from megatron_music.files import read_json, require_writable
from megatron_music.generation.hints import language_hints, lyrics_hints, read_known_tags, tag_hints
from megatron_music.generation.prompt import read_lyrics, read_tags
from megatron_music.generation.request import SongRequest, SungSegment
from megatron_music.generation.sampling import SamplingSettings
from megatron_music.generation.song import FORMATS, Models, Studio

MOST_SONGS = 64
_HEARD_LU = 0.1
"""A loudness that is missed by no more is reached."""


@dataclass(frozen=True)
class Prompt:
    """What is asked for, in files and options.

    Attributes:
        lyrics, tags: files, see ``read_lyrics`` and ``read_tags``; no lyrics ask for a song without any.
        translation: of lyrics in two languages, see ``parse_lyrics``.
        repeat: ``song.json`` of a song to sing again: prompt, seed, settings and, where none are named, models come
            from there.
        reference: an audio file or codes to resemble, or two: vocals and accompaniment; of them, in seconds,
            ``reference_s``.
        past: a song to go on with, see ``read_past``, behind its section ``after``, or behind all. The lyrics hold the
            sung sections as well; without a file, a ``song.json`` tells them. Tags may be left out as well.

    Others: see ``SongRequest``.
    """

    lyrics: str | Path | None = None
    tags: str | Path | None = None
    repeat: str | Path | None = None
    reference: tuple[str | Path, ...] = ()
    reference_s: tuple[float, float] = (0.0, 30.0)
    past: str | Path | None = None
    after: int | None = None
    segments: int | None = None
    instrumental: bool = False
    tracks: Literal["dual", "mix"] = "dual"
    seed: int = 42
    translation: str = "first"


def generate(
    out: str | Path,
    models: Models,
    prompt: Prompt,
    settings: SamplingSettings | None = None,
    *,
    songs: int = 1,
    loudness_lufs: float | None = None,
    file_format: str = "wav",
    known_tags: str | Path | None = None,
    windows_at_once: int | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Sings, and writes ``out/mix.wav``, the stems and ``song.json``; several songs into ``out/01``, ``out/02``, ...

    Args:
        songs: so many songs at once, of seeds ``prompt.seed``, ``prompt.seed + 1``, ...
        known_tags: a file of tags; others in the prompt are hinted at.
        say: is given hints, a line each.

    Others: see ``Studio.make``.

    Returns:
        The folders written.

    Raises:
        InputError: files, folders or options that can't make a song; before a network is read.
    """
    if loudness_lufs is not None and not math.isfinite(loudness_lufs):
        raise InputError("--loudness", f"{loudness_lufs} is no loudness", "name LUFS such as -14")
    outs = _folders(Path(out), songs, file_format)
    known = None if known_tags is None else read_known_tags(known_tags)
    if prompt.repeat is None:
        studio, request = _asked(models, prompt, say)
    elif prompt != Prompt(repeat=prompt.repeat) or songs != 1:
        raise InputError("--repeat", "a song is repeated as it was", "leave out prompt and seed, or this")
    else:
        record = _Repeated(prompt.repeat)
        studio, request, settings = Studio(record.models(models)), record.request, record.settings
        record.check(studio, say)
    hints = tag_hints(request.tags, known) if known is not None else []
    for hint in [*hints, *language_hints(request.lyrics, studio.tokenizer)]:
        say(f"hint: {hint}")
    requests = [replace(request, seed=request.seed + number) for number in range(songs)]
    recordings = studio.make(requests, settings, loudness_lufs=loudness_lufs, windows_at_once=windows_at_once)
    for recording, folder in zip(recordings, outs, strict=True):
        recording.write(folder, file_format)
    return outs


def song_in_words(folder: Path) -> str:
    """A song that was written, in a line: its length, and what in it is not as the model or the prompt had it."""
    record = read_json(folder / "song.json")
    sections, asked = record["segments"], max(1, len(record["request"]["lyrics"]))
    most = record["settings"]["max_new_tokens"]
    sung = range(len(record["request"]["past"]), len(sections))
    period = 1 if record["request"]["tracks"] == "mix" and not record["request"]["lyrics"] else 2
    cut = [str(number + 1) for number in sung if len(sections[number]["audio"]) >= most // period * period]
    parts = [f"{folder}: {record['duration_s']:.1f} s, {len(sections)} of {asked} sections"]
    if cut:
        noun = "section" if len(cut) == 1 else "sections"
        parts.append(f"{noun} {', '.join(cut)} cut at --max-tokens {most}")
    if record["gain"] < 1 and record["target_lufs"] is None:
        parts.append(f"turned down by {-20 * math.log10(record['gain']):.1f} dB, as it would have clipped")
    if record["target_lufs"] is not None and record["loudness_lufs"] is not None:
        short = record["target_lufs"] - record["loudness_lufs"]
        if short > _HEARD_LU:
            parts.append(f"{record['loudness_lufs']:.1f} LUFS, as it would have clipped at {record['target_lufs']:g}")
    return "; ".join(parts)


def _folders(out: Path, songs: int, file_format: str) -> list[Path]:
    """Where each song goes; raises InputError where something else lies there, or nothing can be written."""
    if file_format not in FORMATS:
        raise InputError("--format", f"{file_format!r} can't be written", f"choose {', '.join(FORMATS)}")
    if not 1 <= songs <= MOST_SONGS:
        raise InputError("--songs", f"{songs} at once", f"ask for 1 to {MOST_SONGS}")
    outs = [out] if songs == 1 else [out / f"{number:02d}" for number in range(1, songs + 1)]
    for folder in outs:
        refuse_foreign_folder(folder, "song.json")
        require_writable(folder)
    return outs


def _asked(models: Models, prompt: Prompt, say: Callable[[str], None]) -> tuple[Studio, SongRequest]:
    """The studio, and what its first song shall be; the small files are read first."""
    lyrics: tuple[str, ...] = ()
    if prompt.lyrics is not None:
        read = read_lyrics(prompt.lyrics, prompt.translation)
        lyrics = tuple(read.texts)
        for hint in lyrics_hints(read, prompt.lyrics):
            say(f"hint: {hint}")
    tags = None if prompt.tags is None else read_tags(prompt.tags)
    studio = Studio(models)
    sung: tuple[SungSegment, ...] = ()
    if prompt.past is not None:
        old_tags, segments = studio.past(prompt.past, prompt.after)
        tags, sung, lyrics = tags or old_tags, tuple(segments), lyrics or _texts_of(prompt.past)
    if tags is None:
        raise InputError("--tags", "is missing", "name a file with one line of tags")
    request = SongRequest(
        tags=tags,
        lyrics=lyrics,
        seed=prompt.seed,
        reference=studio.reference(prompt.reference, *prompt.reference_s) if prompt.reference else None,
        past=sung,
        segments=prompt.segments,
        tracks=prompt.tracks,
        instrumental=prompt.instrumental,
    )
    return studio, request


def _texts_of(past: str | Path) -> tuple[str, ...]:
    """All lyrics of the song that a ``song.json`` tells of."""
    if not str(past).endswith(".json"):
        raise InputError("--lyrics", "is missing", "name the song's lyrics, with the sections that come")
    return _Repeated(past).request.lyrics


class _Repeated:
    """What a ``song.json`` says of the song: enough to sing it again.

    Raises InputError where the file is damaged or none.
    """

    def __init__(self, path: str | Path):
        self.path, record = Path(path), read_json(path)
        try:
            self._models = {name: dict(record["models"][name]) for name in ("stage1", "stage2")}
            self.request = SongRequest.from_record(record["request"])
            # A setting that is missing would fall back on its default.
            self.settings = SamplingSettings(**{name: record["settings"][name] for name in asdict(SamplingSettings())})
            self.codec, self.weights, self.vocoder, self.device, self.dtype = (
                record[name] for name in ("codec", "codec_weights", "vocoder", "device", "dtype")
            )
            self.backend = record.get("backend", "transformers")
            texts = (self.backend, self.codec, self.weights or "", self.vocoder or "", self.device, self.dtype)
            if not all(isinstance(text, str) for text in texts):
                raise TypeError
            for model in self._models.values():
                if not isinstance(model["folder"], str) or not isinstance(model["fingerprint"], str):
                    raise TypeError
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = (
                f"is not a whole song.json ({error})" if isinstance(error, InputError) else "is not a whole song.json"
            )
            raise InputError(path, what, "name one that `generate` wrote") from None

    def models(self, named: Models) -> Models:
        """The models that sang the song, or those that are named in their place; always its codec."""
        before = {name: model["folder"] for name, model in self._models.items()}
        before |= {"weights": self.weights, "vocoder": self.vocoder, "dtype": self.dtype, "backend": self.backend}
        missing = {name: value for name, value in before.items() if getattr(named, name) is None}
        return replace(named, codec=self.codec, **missing)

    def check(self, studio: Studio, say: Callable[[str], None]) -> None:
        """Raises InputError where other models would sing; hints at another device, type of numbers or backend."""
        for (name, model), folder in zip(self._models.items(), studio.folders, strict=True):
            if folder.fingerprint() != model["fingerprint"]:
                found = f"is not the {name} model that sang {self.path}"
                raise InputError(folder.path, found, f"name that model with --{name}")
        if (studio.device, studio.dtype, studio.backend) != (self.device, self.dtype, self.backend):
            sung = f"on {self.device} in {self.dtype} by {self.backend}"
            say(f"hint: the song was sung {sung}; here its tokens may differ")

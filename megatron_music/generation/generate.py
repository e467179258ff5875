"""The verb `generate`: files and options to requests, songs to folders."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from megatron_music.conversion.export import refuse_foreign_folder
from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.generation.hints import language_hints, read_known_tags, tag_hints
from megatron_music.generation.prompt import read_lyrics, read_tags
from megatron_music.generation.request import SongRequest
from megatron_music.generation.sampling import SamplingSettings
from megatron_music.generation.song import FORMATS, Studio

MOST_SONGS = 64


def generate(
    out: str | Path,
    *,
    stage1: str | Path | None = None,
    stage2: str | Path | None = None,
    lyrics: str | Path | None = None,
    tags: str | Path | None = None,
    repeat: str | Path | None = None,
    seed: int = 42,
    songs: int = 1,
    segments: int | None = None,
    instrumental: bool = False,
    tracks: Literal["dual", "mix"] = "dual",
    reference: Sequence[str | Path] = (),
    reference_s: tuple[float, float] = (0.0, 30.0),
    past: str | Path | None = None,
    after: int | None = None,
    settings: SamplingSettings | None = None,
    loudness_lufs: float | None = None,
    file_format: str = "wav",
    known_tags: str | Path | None = None,
    windows_at_once: int | None = None,
    say: Callable[[str], None] = print,
    codec: str | None = None,
    weights: str | Path | None = None,
    vocoder: str | Path | None = None,
    vocabulary: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[Path]:
    """Sings, and writes ``out/mix.wav``, the stems and ``song.json``; several songs into ``out/01``, ``out/02``, ...

    Args:
        stage1, stage2: model folders; with ``repeat``, None takes those of the song.
        lyrics, tags: files, see ``read_lyrics`` and ``read_tags``; no lyrics ask for a song without any.
        repeat: ``song.json`` of a song to sing again: prompt, seed and settings come from there.
        songs: so many songs at once, of seeds ``seed``, ``seed + 1``, ...
        reference: an audio file or codes to resemble, or two: vocals and accompaniment; of them, in seconds,
            ``reference_s``.
        past: a song to go on with, see ``read_past``, behind its section ``after``, or behind all. The lyrics hold the
            sung sections as well; without a file, a ``song.json`` tells them. Tags may be left out as well.
        known_tags: a file of tags; others in the prompt are hinted at.
        say: is given hints, a line each.

    Others: see ``SongRequest``, ``Studio`` and ``Studio.make``.

    Returns:
        The folders written.

    Raises:
        InputError: files, folders or options that can't make a song; before a network is read.
    """
    if file_format not in FORMATS:
        raise InputError("format", f"{file_format!r} can't be written", f"choose {', '.join(FORMATS)}")
    if not 1 <= songs <= MOST_SONGS:
        raise InputError("songs", f"{songs} at once", f"ask for 1 to {MOST_SONGS}")
    out = Path(out)
    outs = [out] if songs == 1 else [out / f"{number:02d}" for number in range(1, songs + 1)]
    for folder in outs:
        refuse_foreign_folder(folder, "song.json")
    record = None if repeat is None else _Repeated(repeat)
    known = None if known_tags is None else read_known_tags(known_tags)
    texts = None if lyrics is None else tuple(read_lyrics(lyrics))
    tag_line = None if tags is None else read_tags(tags)
    if record is not None:
        if lyrics or tags or past or reference or songs != 1:
            raise InputError("repeat", "a song is repeated as it was", "leave out the prompt, or --repeat")
        stage1, stage2 = stage1 or record.folder("stage1"), stage2 or record.folder("stage2")
        codec, weights = record.codec, weights or record.weights
        vocoder, dtype = vocoder or record.vocoder, dtype or record.dtype
    for name, folder in (("stage1", stage1), ("stage2", stage2)):
        if folder is None:
            raise InputError(f"--{name}", "is missing", "name a model folder")
    studio = Studio(
        stage1,
        stage2,
        codec=codec,
        weights=weights,
        vocoder=vocoder,
        vocabulary=vocabulary,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
    )
    if record is not None:
        record.check(studio, say)
        request, settings = record.request, record.settings
    else:
        sung: Sequence[Any] = ()
        if past is not None:
            old_tags, sung = studio.past(past, after)
            tag_line = tag_line or old_tags
            texts = texts or _texts_of(past)
        if tag_line is None:
            raise InputError("--tags", "is missing", "name a file with one line of tags")
        request = SongRequest(
            tags=tag_line,
            lyrics=texts or (),
            seed=seed,
            reference=studio.reference(reference, *reference_s) if reference else None,
            past=tuple(sung),
            segments=segments,
            tracks=tracks,
            instrumental=instrumental,
        )
    hints = tag_hints(request.tags, known) if known is not None else []
    for hint in [*hints, *language_hints(request.lyrics, studio.tokenizer)]:
        say(f"hint: {hint}")
    requests = [replace(request, seed=request.seed + number) for number in range(songs)]
    recordings = studio.make(requests, settings, loudness_lufs=loudness_lufs, windows_at_once=windows_at_once)
    for recording, folder in zip(recordings, outs, strict=True):
        recording.write(folder, file_format)
    return outs


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
            texts = (self.codec, self.weights or "", self.vocoder or "", self.device, self.dtype)
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

    def folder(self, stage: str) -> str:
        """Where the model of a stage lay."""
        return self._models[stage]["folder"]

    def check(self, studio: Studio, say: Callable[[str], None]) -> None:
        """Raises InputError where other models would sing; hints at another device or type of numbers."""
        for (name, model), folder in zip(self._models.items(), studio.folders, strict=True):
            if folder.fingerprint() != model["fingerprint"]:
                found = f"is not the {name} model that sang {self.path}"
                raise InputError(folder.path, found, f"name that model with --{name}")
        if (studio.device, studio.dtype) != (self.device, self.dtype):
            say(f"hint: the song was sung on {self.device} in {self.dtype}; here its tokens may differ")

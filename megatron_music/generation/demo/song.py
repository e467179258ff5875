"""From what stands in the page's fields to a song in a folder of its own; and how a visitor ends it."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.generation.demo.pictures import draw_piano_roll, draw_spectrogram, section_starts
from megatron_music.generation.hints import language_hints, lyrics_hints, tag_hints
from megatron_music.generation.prompt import lyrics_of
from megatron_music.generation.request import SongRequest, Watch
from megatron_music.generation.sampling import SamplingSettings
from megatron_music.generation.song import FORMATS, TRACKS, Recording, Studio

TRACK_ORDER = ("mix", "vocals", "accompaniment")
Report = Callable[[float, str], None]
"""Is given the share that is done, 0 to 1, and what is being done."""


@dataclass(frozen=True)
class Form:
    """The fields of the page, as its visitor left them.

    Attributes:
        tags: each tag that was chosen or written.
        reference: uploaded files: a mix or one track, or vocals and accompaniment.
        reference_s: the reference's part.
        segments: sections to sing; None sings all.
    """

    lyrics: str
    tags: tuple[str, ...]
    seed: int = 42
    segments: int | None = None
    instrumental: bool = False
    reference: tuple[Path, ...] = ()
    reference_s: tuple[float, float] = (0.0, 30.0)
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    loudness_lufs: float | None = None
    file_format: str = "wav"

    def request(self, studio: Studio) -> tuple[SongRequest, list[str]]:
        """The song that is asked for, and hints at its lyrics; raises InputError, which names an upload by its own name
        alone."""
        if self.file_format not in FORMATS:
            raise InputError("--format", f"{self.file_format!r} can't be written", f"choose {', '.join(FORMATS)}")
        lyrics = lyrics_of(self.lyrics) if self.lyrics.strip() else None
        hints = lyrics_hints(lyrics, "lyrics") if lyrics else []
        asked = SongRequest(
            tags=" ".join(" ".join(self.tags).split()),
            lyrics=tuple(lyrics.texts) if lyrics else (),
            seed=self.seed,
            segments=self.segments,
            instrumental=self.instrumental,
        )
        if not self.reference:
            return asked, hints
        try:
            return replace(asked, reference=studio.reference(self.reference, *self.reference_s)), hints
        except InputError as error:
            # Where this server keeps its uploads is none of its visitors' business.
            where, what = (_without_folders(text, self.reference) for text in (error.where, error.what))
            raise InputError(where, what, error.mend) from None


@dataclass(frozen=True)
class Finished:
    """A song that lies in its folder.

    Attributes:
        sounds: audio files by track, the mix first.
        piano_roll: of the vocals; None where no note is held or there are none.
        hints: a line each.
    """

    folder: Path
    duration_s: float
    sections: int
    sounds: dict[str, Path]
    piano_roll: Path | None
    spectrogram: Path
    hints: list[str]

    @property
    def files(self) -> list[Path]:
        """What there is to download."""
        return [*self.sounds.values(), self.folder / "song.json"]


def make_song(
    studio: Studio, form: Form, songs: Path, known_tags: list[str] | None, watch: Watch, report: Report
) -> Finished:
    """Sings what a form asks for into a new folder below ``songs``; raises InputError, or Stopped."""
    request, hints = form.request(studio)
    hints += tag_hints(request.tags, known_tags) if known_tags is not None else []
    hints += language_hints(request.lyrics, studio.tokenizer)
    _follow(watch, report, request, form.settings.max_new_tokens, studio.codec.frames_per_second)
    report(0.0, "reading the models")
    (recording,) = studio.make([request], form.settings, loudness_lufs=form.loudness_lufs, watch=watch)
    folder = songs / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    recording.write(folder, form.file_format)
    report(1.0, "drawing")
    return _drawn(recording, folder, form.file_format, hints)


def _follow(watch: Watch, report: Report, request: SongRequest, most_tokens: int, frames_per_second: float) -> None:
    """Lets the callbacks of ``watch`` report, stage by stage."""
    first, of = request.sections.start, len(request.sections)

    def on_token(_: int, section: int, tokens: int) -> None:
        seconds = tokens / len(TRACKS[request.tracks]) / frames_per_second
        share = (section - first + tokens / most_tokens) / of
        report(share, f"stage 1: section {section - first + 1} of {of}, {seconds:.1f} s sung")

    def on_frame(frame: int, frames: int) -> None:
        # The last frame is followed by the codec, or by a further batch of windows that says so itself.
        report(frame / frames, f"stage 2: frame {frame} of {frames}" if frame < frames else "decoding")

    watch.on_token, watch.on_frame = on_token, on_frame


def _drawn(recording: Recording, folder: Path, file_format: str, hints: list[str]) -> Finished:
    sections = section_starts(recording.record)
    voice = recording.sounds.get("vocals")
    roll, spectrogram = folder / "piano_roll.png", folder / "spectrogram.png"
    rate = recording.sample_rate
    sings = voice is not None and draw_piano_roll(roll, voice, rate, sections)
    draw_spectrogram(spectrogram, recording.sounds["mix"], rate, sections)
    return Finished(
        folder=folder,
        duration_s=recording.record["duration_s"],
        sections=len(recording.record["segments"]),
        sounds={name: folder / f"{name}.{file_format}" for name in TRACK_ORDER if name in recording.sounds},
        piano_roll=roll if sings else None,
        spectrogram=spectrogram,
        hints=hints,
    )


def _without_folders(text: str, paths: Sequence[Path]) -> str:
    for path in paths:
        text = text.replace(str(path), path.name)
    return text


class Visitors:
    """Who is being sung for, so that a visitor who stops or leaves ends the work."""

    def __init__(self):
        self._lock = threading.Lock()
        self._watches: dict[str, Watch] = {}

    @contextmanager
    def watch(self, visitor: str) -> Iterator[Watch]:
        """Yields a ``Watch`` that ``stop`` reaches while the block runs."""
        watch = Watch()
        with self._lock:
            self._watches[visitor] = watch
        try:
            yield watch
        finally:
            with self._lock:
                self._watches.pop(visitor, None)

    def stop(self, visitor: str | None = None) -> None:
        """Ends the work for one visitor, or for all."""
        with self._lock:
            for name, watch in self._watches.items():
                if visitor in (None, name):
                    watch.stop.set()

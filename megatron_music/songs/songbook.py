"""Renders a folder of ABC songs to stems with a manifest: music to learn from and to listen to, made on the spot.

Every song becomes ``takes`` recordings. Take 0 is the song as it is written; the others differ in key, tempo, singer
and accompaniment, and their tags say so. All onsets lie on the codecs' grid of 50 frames a second, no sound depends on
chance, and a sound is the same in every song: a small model can learn it within minutes.

Stems are 16 kHz mono FLAC, the rate of X-Codec and of the embedded codec; the mix is the sum of the two stems. Vowels
are sung at -20 dBFS (RMS), the accompaniment is scaled in steps of 1 dB to lie 4 dB lower.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cache, partial
from pathlib import Path

import numpy as np

from megatron_music.audio.files import write_audio
from megatron_music.errors import InputError
from megatron_music.files import atomic_path, read_json, write_json
from megatron_music.parallel import Workers, usable_cores
from megatron_music.progress import track
from megatron_music.songs.abc import AbcSong, read_abc
from megatron_music.songs.accompaniment import Chord, Timeline, check_instruments, parse_chord, play
from megatron_music.songs.manifest import write_manifest
from megatron_music.songs.phones import FRAME_S
from megatron_music.songs.pronunciation import load_language, pronounce
from megatron_music.songs.singing import SAMPLE_RATE, SLOPES, VOICES, Sound, SungNote, SungSyllable, lay_out, sing
from megatron_music.songs.song import Segment, Song
from megatron_music.songs.takes import Take, frame_count, tags, take_plans, timeline_of, written_instruments

FILES = {"mix": "mix.flac", "vocals": "vocals.flac", "accompaniment": "instrumental.flac"}
BESIDE = "song.json"
ACCOMPANIMENT_DBFS = -24
PEAK = 0.98


@dataclass(frozen=True)
class SungLine:
    """A line of the lyrics with the frames in which it is sung."""

    text: str
    start: int
    end: int


def render_songbook(source: Path, out: Path, takes: int = 1, seed: int = 0, processes: int | None = None) -> str:
    """Renders every ``*.abc`` of ``source`` to ``out/ID.tN/{mix,vocals,instrumental}.flac`` and ``out/manifest.jsonl``;
    returns in a line what is there then.

    A recording's line of the manifest lies beside it too, as ``song.json``, by which `manifest` and `evaluate songs`
    know its words and its tags.

    A recording that is complete and was made from the same song, take and program is kept; a change in any of them, or
    a run that was stopped, makes only what is missing. Raises InputError for the first song that can't be read.

    Args:
        takes: recordings of each song; the seed decides how those after the first differ.
        processes: how many work at once; all cores where None.
    """
    source, out = Path(source), Path(out)
    if takes < 1:
        raise InputError("--takes", f"{takes} is not a number of recordings", "ask for 1 or more")
    paths = sorted(source.glob("*.abc"))
    if not paths:
        raise InputError(source, "holds no .abc files", "name a folder of songs such as examples/songbook")
    songs = [(song, chosen) for song in map(_checked, paths) for chosen in take_plans(song, takes, seed)]
    missing = [(song, take) for song, take in songs if _finished(song, take, out) is None]
    with Workers(min(processes or usable_cores(), max(1, len(missing)))) as workers:
        # Neighbours in the list share instruments and keys, and each worker keeps the notes it has made.
        rendered = workers.map(partial(_render, out), [(song.path, take) for song, take in missing])
        for _ in track(rendered, "Rendering songs", len(missing)):
            pass
    written = [_song_of(song, take, out) for song, take in songs]
    for song in written:
        beside = out / song.id / BESIDE
        if not beside.is_file():
            write_manifest(beside, [song])
    write_manifest(out / "manifest.jsonl", written)
    hours = sum(song.duration_s for song in written) / 3600
    return (f"{out / 'manifest.jsonl'}: {len(written):,} recordings of {len(paths):,} songs, {hours:,.2f} hours, "
            f"{len(missing):,} of them made now")  # fmt: skip


def _checked(path: Path) -> AbcSong:
    """A song whose tags name a voice, a timbre, instruments and chords that there are."""
    song = read_abc(path)
    load_language(song.fields["language"], song.where("language"))
    singer, _, timbre = song.fields["voice"].partition(" ")
    if singer not in VOICES or timbre not in SLOPES:
        mend = f"write one of {', '.join(VOICES)} and one of {', '.join(SLOPES)}"
        raise InputError(song.where("voice"), f"%%voice {song.fields['voice']!r} is not known", mend)
    check_instruments(written_instruments(song), song.where("instruments"))
    for name in song.intro:
        parse_chord(name, song.where("intro"))
    for chord in song.chords:
        parse_chord(chord.name, f"{path}: line {chord.line_number}")
    return song


def recording_id(song: AbcSong, take: Take) -> str:
    """``oh_susanna.t0``"""
    return f"{song.path.stem}.t{take.number}"


def syllables_of(song: AbcSong, take: Take, timeline: Timeline) -> list[SungSyllable]:
    """All syllables of a take with their sounds and notes, pitches as they are sung."""
    language = load_language(song.fields["language"])
    shift = take.transposition + VOICES[take.singer].octave
    return [
        SungSyllable(
            pronounce(syllable.word, language)[syllable.index],
            tuple(
                SungNote(
                    timeline.frame(note.start - song.pickup),
                    timeline.frame(note.start + note.duration - song.pickup),
                    note.pitch + shift,
                )
                for note in syllable.notes
            ),
        )
        for section in song.sections
        for line in section.lines
        for syllable in line.syllables
    ]


def chords_of(song: AbcSong, take: Take) -> list[tuple[Fraction, Chord]]:
    """Chords of a take with their times from the first bar line, the introduction's first."""
    intro = [(Fraction(index - len(song.intro)) * song.bar, name) for index, name in enumerate(song.intro)]
    sung = [(chord.start - song.pickup, chord.name) for chord in song.chords]
    return [
        (at, parse_chord(name, song.path).transposed(take.transposition))
        for at, name in (intro if take.intro else []) + sung
    ]


def stems(song: AbcSong, take: Take) -> dict[str, np.ndarray]:
    """Samples of each track (float32, 16 kHz); ``mix`` is the sum of the two others and stays below full scale."""
    timeline = timeline_of(song, take)
    frames = frame_count(timeline)
    voice = replace(VOICES[take.singer], slope=SLOPES[take.timbre])
    vocals = sing(syllables_of(song, take, timeline), voice, frames)
    accompaniment = play(chords_of(song, take), take.instruments, timeline, frames)
    accompaniment *= 10 ** (round(ACCOMPANIMENT_DBFS - loudness_dbfs(accompaniment)) / 20)
    peak = float(np.abs(vocals + accompaniment).max())
    if peak > PEAK:
        vocals, accompaniment = vocals * (PEAK / peak), accompaniment * (PEAK / peak)
    return {"mix": vocals + accompaniment, "vocals": vocals, "accompaniment": accompaniment}


def loudness_dbfs(samples: np.ndarray) -> float:
    """Root mean square over the stretches of 0.4 s that are not silent (above -50 dBFS), in dB of full scale."""
    length = round(0.4 * SAMPLE_RATE)
    power = np.mean(samples[: len(samples) // length * length].reshape(-1, length).astype(np.float64) ** 2, axis=1)
    audible = power[power > 10 ** (-50 / 10)]
    return 10 * math.log10(audible.mean()) if len(audible) else -100.0


def sung_lines(song: AbcSong, sounds: Sequence[Sound]) -> list[list[SungLine]]:
    """Lines of each section with the frames from their first sound to their last."""
    spans: dict[int, tuple[int, int]] = {}
    for sound in sounds:
        start, end = spans.get(sound.syllable, (sound.start, sound.end))
        spans[sound.syllable] = (min(start, sound.start), max(end, sound.end))
    sections, first = [], 0
    for section in song.sections:
        lines = []
        for line in section.lines:
            last = first + len(line.syllables) - 1
            lines.append(SungLine(line.text, spans[first][0], spans[last][1]))
            first = last + 1
        sections.append(lines)
    return sections


def segments_of(song: AbcSong, take: Take) -> tuple[list[Segment], list[list[SungLine]]]:
    """Segments that tile the take, and the sung lines in each; a section starts with its first sound.

    An introduction of at least a second is a segment of its own, ``[intro]`` without lyrics; a shorter stretch before
    the first sound belongs to the first section.
    """
    timeline = timeline_of(song, take)
    lines = sung_lines(song, lay_out(syllables_of(song, take, timeline)))
    labels = [section.label for section in song.sections]
    starts = [
        section_lines[0].start if section_lines else timeline.frame(section.start - song.pickup)
        for section, section_lines in zip(song.sections, lines, strict=True)
    ]
    if take.intro and starts[0] * FRAME_S >= 1.0:
        labels, starts, lines = ["intro", *labels], [0, *starts], [[], *lines]
    starts[0] = 0
    ends = [*starts[1:], frame_count(timeline)]
    segments = [
        Segment(
            text=f"[{label}]\n" + "".join(f"{line.text}\n" for line in section_lines) + "\n",
            start_frame=start,
            end_frame=end,
            extra={"offset": _seconds(start), "duration": _seconds(end - start)},
        )
        for label, section_lines, start, end in zip(labels, lines, starts, ends, strict=True)
    ]
    return segments, lines


def _seconds(frames: int) -> float:
    return round(frames * FRAME_S, 2)


def _song_of(song: AbcSong, take: Take, out: Path) -> Song:
    segments, lines = segments_of(song, take)
    fields = song.fields
    name = recording_id(song, take)
    return Song(
        id=name,
        audio={kind: f"{name}/{file}" for kind, file in FILES.items()},
        duration_s=_seconds(segments[-1].end_frame),
        genres=tags(song, take),
        segments=segments,
        structure=[
            {"start": _seconds(one.start_frame), "end": _seconds(one.end_frame), "label": one.label} for one in segments
        ],
        language=fields["language"],
        folder=out,
        extra={
            "title": fields["T"],
            "composer": fields["C"],
            "source": fields["S"],
            "licence": "public domain",
            "take": {
                "transposition_semitones": take.transposition,
                "quarters_per_minute": round(take.quarters_per_minute, 2),
            },
            "lines": [
                {"text": line.text, "start": _seconds(line.start), "end": _seconds(line.end)}
                for section_lines in lines
                for line in section_lines
            ],
        },
    )


def _render(out: Path, job: tuple[Path, Take]) -> None:
    """Writes one recording's folder, whole or not at all."""
    path, take = job
    song = read_abc(path)
    with atomic_path(out / recording_id(song, take)) as folder:
        folder.mkdir()
        for kind, samples in stems(song, take).items():
            write_audio(folder / FILES[kind], samples, SAMPLE_RATE)
        write_json(folder / "recording.json", {"fingerprint": _fingerprint(song, take), **asdict(take)})


def _finished(song: AbcSong, take: Take, out: Path) -> Path | None:
    """The folder of a recording that is complete and up to date."""
    folder = out / recording_id(song, take)
    if not all((folder / name).is_file() for name in [*FILES.values(), "recording.json"]):
        return None
    try:
        return folder if read_json(folder / "recording.json").get("fingerprint") == _fingerprint(song, take) else None
    except (InputError, AttributeError):
        return None


def _fingerprint(song: AbcSong, take: Take) -> str:
    """Digest of all that a recording depends on: the song's file, the take, and this room's program and tables."""
    digest = hashlib.sha256(_program())
    digest.update(song.path.read_bytes())
    digest.update(json.dumps(asdict(take)).encode())
    return digest.hexdigest()


@cache
def _program() -> bytes:
    """Digest of the files whose text decides how a recording sounds."""
    room = Path(__file__).parent
    names = ["abc", "phones", "pronunciation", "singing", "instruments", "accompaniment", "songbook"]
    files = [room / f"{name}.py" for name in names] + sorted((room / "languages").glob("*.yaml"))
    return b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)

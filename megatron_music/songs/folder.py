"""From a folder of recordings to a manifest: pairs audio with stems, lyrics and tags by their names.

In ``FOLDER`` and all folders below it (hidden ones and links to folders left out), where ``song`` is any name:

| file | is |
| --- | --- |
| `song.mp3` | the mix; or any suffix of ``pairing.AUDIO_SUFFIXES`` |
| `song.vocals.wav`, `song/vocals.wav` | vocals |
| `song.instrumental.wav`, `song/no_vocals.wav` | accompaniment; `accompaniment` is a third name for it |
| `song/mix.wav` | the mix as well |
| `song.lrc`, `song/lyrics.lrc` | lyrics with times; preferred to a `.txt` |
| `song.txt`, `song/lyrics.txt` | lyrics with labels such as `[verse]`; or with LRC times |
| `song.tags.txt`, `song/tags.txt` | tags, on one line or more |
| `song.json`, `song/song.json` | fields of a manifest (`genres` or `tags`, `language`, `id`, `msa`, ...) and others |

Case does not matter, nor how a system spells accents and blanks (``songs/pairing.py``). The id is the path without
suffix as the mix has it, ``album/song``, unless a ``.json`` has another. Tags come from the first that there is of
``.tags.txt``, ``.json`` and the audio file's own metadata, which also gives title, artist, album, date and licence.
Text is UTF-8, or UTF-16 behind its mark. Lengths are those that ``audio/files`` will read; only files whose header
does not tell are decoded for it.

Lyrics with times become segments, and are kept as ``lines``. So do lyrics whose labels are those of the sections in
``msa``. Other lyrics are kept as ``lyrics``, for the annotator ``align``. With ``speech``, a ``.txt`` is what is said
in a clip, and becomes the song's ``text``.

A song of which a file can't be used is left out and stands in ``rejects.parquet`` with the file and the reason; so do
lyrics and tags without audio. What of lyrics is not sung, or was guessed, stands in ``remarks.txt``. Other stems of a
separation (``drums``, ``bass``, ...) beside vocals are passed over.
"""

import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_music.audio.files import AudioInfo, NoSamples, audio_info
from megatron_music.errors import InputError
from megatron_music.files import NotText, as_utf8, make_folder, parse_json, read_text, write_text
from megatron_music.progress import track
from megatron_music.songs.alignment import TimedSection, tile, timed_sections
from megatron_music.songs.labels import plain_label
from megatron_music.songs.lyric_rows import Remark
from megatron_music.songs.lyrics import Lyrics, Section, check_translation, parse_lyrics, segment_text
from megatron_music.songs.manifest import AUDIO_FIELDS, read_songs, write_manifest
from megatron_music.songs.pairing import SIDECARS, PairedFiles, SongFile, pair, song_file, stems, suffix
from megatron_music.songs.rejects import (
    REJECTS,
    refuse_too_many,
    rejects_by_rule,
    rows_by_rule,
    where_to_read,
    write_rejects,
)
from megatron_music.songs.song import Reject, Rejected, Segment, Song

_LONGEST_S = 24 * 3600.0
_SUFFIXES_TOLD = 6
_METADATA = {"title": "title", "artist": "artist", "album": "album", "date": "date", "license": "licence"}
_THREADS, _BATCH = 16, 1024
REMARKS = "remarks.txt"


@dataclass
class _Made:
    """What became of the files with one id: a song or none, rejects, and remarks by the files that they are of."""

    song: Song | None
    rejects: list[Reject]
    remarks: list[tuple[Path, Remark]] = field(default_factory=list)


@dataclass
class FolderSummary:
    """What a folder held."""

    songs: int = 0
    seconds: float = 0.0
    with_lyrics: int = 0
    with_times: int = 0
    with_stems: int = 0
    with_tags: int = 0
    further_stems: int = 0
    others: Counter = field(default_factory=Counter)
    alike: list[str] = field(default_factory=list)
    rejected: Counter = field(default_factory=Counter)
    remarked: Counter = field(default_factory=Counter)

    def add(self, song: Song) -> None:
        self.songs += 1
        self.seconds += song.duration_s
        self.with_lyrics += bool(song.segments or song.extra.get("lyrics") or song.text)
        self.with_times += bool(song.segments)
        self.with_stems += {"vocals", "accompaniment"} <= song.audio.keys()
        self.with_tags += bool(song.genres)

    def __str__(self) -> str:
        lines = [
            f"songs        {self.songs:,}",
            f"hours        {self.seconds / 3600:,.2f}",
            f"with lyrics  {self.with_lyrics:,} ({self.with_times:,} with times)",
            f"with stems   {self.with_stems:,}",
            f"with tags    {self.with_tags:,}",
            *rejects_by_rule(self.rejected),
        ]
        if self.remarked:
            lines.append(f"remarks      {self.remarked.total():,} on lyrics, in {REMARKS}")
            lines += rows_by_rule(self.remarked)
        if self.further_stems:
            lines.append(f"passed over  {self.further_stems:,} stems other than vocals")
        if self.others:
            suffixes = ", ".join(f"{count:,} {suffix}" for suffix, count in self.others.most_common(_SUFFIXES_TOLD))
            more = ", ..." if len(self.others) > _SUFFIXES_TOLD else ""
            lines.append(f"passed over  {self.others.total():,} that are neither audio nor text: {suffixes}{more}")
        if self.alike:
            names = ", ".join(self.alike[:4]) + (", ..." if len(self.alike) > 4 else "")
            lines.append(
                f"kept apart   {len(self.alike):,} songs whose names differ by case or accents' form alone: {names}"
            )
        return "\n".join(lines)

    def tell(self, out: str | Path, most_rejected: float, say: Callable[[object], None]) -> None:
        """Says all of it; raises InputError where a larger share than ``most_rejected`` was rejected."""
        rejected = self.rejected.total()
        say("\n".join([str(self), *where_to_read(out, rejected), f"written      {Path(out) / 'manifest.jsonl'}"]))
        refuse_too_many(out, rejected, self.songs + rejected, most_rejected)


def manifest_of_folder(
    folder: str | Path,
    out: str | Path,
    speech: bool = False,
    language: str | None = None,
    source: str | None = None,
    licence: str | None = None,
    translation: str = "first",
) -> FolderSummary:
    """Writes ``out/rejects.parquet``, ``out/remarks.txt`` and ``out/manifest.jsonl``, in the order of the songs' paths.

    Memory grows with the number of files, by some 400 bytes for each.

    Args:
        speech: whether ``.txt`` files hold what is said in clips.
        language, source, licence: of all songs that do not say otherwise.
        translation: of lyrics in two languages, see ``parse_lyrics``.

    Raises:
        InputError: there is no such folder, or no song in it that can be used, in which case no manifest is written;
            or ``out`` can't be made, or ``translation`` is none.
    """
    check_translation(translation)
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise InputError(folder, "is no folder", "name a folder of recordings")
    make_folder(out)
    summary = FolderSummary()
    rejects: list[Reject] = []
    paired = pair(_files(folder, out, summary, rejects))
    summary.alike = [files.id for files in paired if files.alike and files.has_audio]
    defaults = {name: value for name, value in (("source", source), ("licence", licence)) if value}
    read = partial(parse_lyrics, translation=translation)
    make = partial(_made, folder=folder.resolve(), read=None if speech else read, language=language, defaults=defaults)
    write_manifest(out / "manifest.jsonl", _songs(paired, make, summary, rejects, out))
    return summary


def _songs(
    paired: list[PairedFiles], make: Any, summary: FolderSummary, rejects: list[Reject], out: Path
) -> Iterator[Song]:
    """Songs one by one; writes rejects and remarks before it ends, so that where a manifest is, they are too."""
    seen: set[str] = set()
    remarks: list[str] = []
    with ThreadPoolExecutor(_THREADS) as pool:  # reading headers is waiting for the disk
        for made in track(_in_batches(pool, make, iter(paired)), "reading headers", total=len(paired)):
            rejects += made.rejects
            song = made.song
            if song is None:
                continue
            if song.id in seen:
                where = str(song.audio_path(next(iter(song.audio))))
                rejects.append(Reject(song.id, "duplicate_id", "another song before has this id", where, song.id))
                continue
            seen.add(song.id)
            summary.add(song)
            summary.remarked.update(remark.rule for _, remark in made.remarks)
            remarks += [f"{path}: {remark}\n" for path, remark in made.remarks]
            yield song
    summary.rejected.update(reject.rule for reject in rejects)
    write_rejects(out / REJECTS, rejects)
    write_text(out / REMARKS, as_utf8("".join(remarks)))
    if not summary.songs:
        why = f"; the first of {len(rejects)} rejects: {rejects[0].detail}" if rejects else ""
        raise InputError(
            out, f"there is no song for a manifest{why}", "name a folder with wav, flac, ogg, mp3 or m4a files"
        )


def _in_batches(pool: ThreadPoolExecutor, make: Any, paired: Iterator[PairedFiles]) -> Iterator[_Made]:
    while batch := list(islice(paired, _BATCH)):
        yield from pool.map(make, batch)


def _files(folder: Path, out: Path, summary: FolderSummary, rejects: list[Reject]) -> Iterator[SongFile]:
    """All files that belong to a song; folders that can't be read become rejects."""

    def unreadable(error: OSError) -> None:
        rejects.append(Reject("", "folder_unreadable", error.strerror or str(error), str(error.filename)))

    passed = out.resolve()
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if name[0] != "." and (Path(parent) / name).resolve() != passed]
        place = os.path.relpath(parent, folder)
        stems_here = stems(names)
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        summary.others.update({"links to folders": len(links)} if links else {})
        for name in names:
            if name[0] == ".":
                continue
            file = song_file("" if place == "." else place, name, stems_here)
            if file is None:
                summary.others[suffix(name) or "without a suffix"] += 1
            elif file.role == "further":
                summary.further_stems += 1
            else:
                yield file


def _made(
    paired: PairedFiles,
    folder: Path,
    read: Callable[..., Lyrics] | None,
    language: str | None,
    defaults: dict[str, str],
) -> _Made:
    """What becomes of files of one song; texts are lyrics, read by ``read``, or without it what is said in clips."""
    id, (paths, passed_over) = paired.id, paired.chosen()
    audio = {role: path for role, path in paths.items() if role in AUDIO_FIELDS}
    sidecars = {role: folder / path for role, path in paths.items() if role in SIDECARS}
    rejects = []
    for file in passed_over:
        rule = "duplicate_track" if file.role in AUDIO_FIELDS else "duplicate_text"
        detail = f"is the {file.role} of {id} like {paths[file.role]}, which is kept"
        rejects.append(Reject(file.path, rule, detail, str(folder / file.path)))
    if not audio:
        sidecars.pop(".json", None)  # fields of whatever program
        rule, detail = "audio_missing", "has no audio"
        if paired.alike:
            rule, detail = "ambiguous_name", f"may be of {' or of '.join(paired.alike)}; spell it like its song"
        return _Made(None, [*(Reject(id, rule, detail, str(path)) for path in sidecars.values()), *rejects])
    try:
        song = _song(id, audio, sidecars, folder)
        song, remarks = _with_lyrics(song, sidecars, read) if read else (_with_speech(song, sidecars), [])
    except Rejected as rejected:
        return _Made(None, [rejected.reject(id, folder / next(iter(audio.values()))), *rejects])
    song = replace(song, language=song.language or language, extra={**defaults, **song.extra})
    return _Made(song, rejects, remarks)


def _song(id: str, audio: dict[str, str], sidecars: dict[str, Path], folder: Path) -> Song:
    """A song with tracks, length, tags and the fields of its ``.json``."""
    for path in audio.values():
        if os.fsencode(path).decode(errors="replace") != path:
            raise Rejected("not_utf8", f"the name of {path} is not UTF-8; rename it")
    content = _fields(sidecars[".json"]) if ".json" in sidecars else {}
    content |= {name: audio.get(role) for role, name in AUDIO_FIELDS.items()}
    infos = {role: _heard(folder / path) for role, path in audio.items()}
    metadata: dict[str, str] = {}
    for info in infos.values():
        metadata = {name: " ".join(text.split()) for name, text in info.metadata.items()} | metadata
    lengths_s = {role: info.duration_s for role, info in infos.items()}
    content["audio_length_in_sec"] = round(lengths_s.get("mix", max(lengths_s.values())), 3)
    if ".tags.txt" in sidecars:
        content["genres"] = ", ".join(filter(None, map(str.strip, _text(sidecars[".tags.txt"]).splitlines())))
    elif not content.get("genres") and metadata.get("genre"):
        content["genres"] = metadata["genre"]
    for name, ours in _METADATA.items():
        if metadata.get(name):
            content.setdefault(ours, metadata[name])
    # Read like a line of any manifest, so that a .json is judged by the same rules.
    line = json.dumps({"id": id.replace(os.sep, "/"), **content})
    (song,) = read_songs(io.BytesIO(line.encode()), folder / "manifest.jsonl", folder)
    if isinstance(song, Reject):
        raise Rejected(song.rule, f"{sidecars.get('.json', id)}: {song.detail}", song.value)
    return song


def _heard(path: Path) -> AudioInfo:
    if not path.is_file():
        raise Rejected("audio_missing", f"{path} is no file, or a link to none")
    try:
        info = audio_info(path)
    except InputError as error:
        raise Rejected("audio_empty" if isinstance(error, NoSamples) else "audio_unreadable", str(error)) from None
    if info.duration_s > _LONGEST_S:
        hours = info.duration_s / 3600
        raise Rejected("audio_too_long", f"{path} lasts {hours:.1f} hours; cut it to at most {_LONGEST_S / 3600:.0f}")
    return info


def _text(path: Path) -> str:
    if not path.is_file():  # opening a pipe would wait for ever
        raise Rejected("text_unreadable", f"{path} is no file, or a link to none")
    try:
        return read_text(path)
    except InputError as error:
        raise Rejected("not_utf8" if isinstance(error, NotText) else "text_unreadable", str(error)) from None


def _fields(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(_text(path), path)
    except InputError as error:
        raise Rejected("not_json", str(error)) from None
    if not isinstance(content, dict):
        raise Rejected("not_json", f"{path} holds a {type(content).__name__}, not an object of fields")
    tags = content.pop("tags", None)
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        tags = ", ".join(tags)
    return content if tags is None else {"genres": tags, **content}


def _with_speech(song: Song, sidecars: dict[str, Path]) -> Song:
    if ".txt" not in sidecars:
        return song
    words = " ".join(_text(sidecars[".txt"]).split())
    if not words:
        raise Rejected("text_empty", f"{sidecars['.txt']} holds no text")
    return replace(song, text=words)


def _with_lyrics(
    song: Song, sidecars: dict[str, Path], read: Callable[..., Lyrics]
) -> tuple[Song, list[tuple[Path, Remark]]]:
    """The song with segments where its lyrics have times, or sections that are those of its structure; and remarks."""
    path = sidecars.get(".lrc") or sidecars.get(".txt")
    if path is None:
        return song, []
    text = _text(path)
    lyrics = read(text, duration_s=song.duration_s)
    sections, remarks = lyrics.sections, list(lyrics.remarks)
    if not sections and not remarks:
        raise Rejected("text_empty", f"{path} holds no lyrics")
    if not sections:  # credits alone, as of music without a voice
        return song, [(path, remark) for remark in remarks]
    timed: list[TimedSection] = []
    extra = dict(song.extra)
    if lyrics.are_timed:
        timed = timed_sections(sections, song.duration_s)
        extra["lines"] = [
            {"text": line.text, "start": line.start_s, "end": line.end_s or song.duration_s}
            for line in lyrics.lines
            if line.start_s < song.duration_s
        ]
    else:
        extra["lyrics"] = "\n".join(text.splitlines())
        if [section.label for section in sections] == [plain_label(part["label"]) for part in song.structure]:
            timed = [_placed(section, part) for section, part in zip(sections, song.structure, strict=True)]
    segments = song.segments or tile(timed, song.structure, song.duration_s)
    if (timed or lyrics.are_timed) and not song.segments:
        remarks += _left_out(sections, segments, song.duration_s)
    return replace(song, segments=segments, extra=extra), [(path, remark) for remark in remarks]


def _left_out(sections: Sequence[Section], segments: Sequence[Segment], duration_s: float) -> Iterator[Remark]:
    """Lines and sections that no segment has."""
    texts = Counter(segment.text for segment in segments)
    for section in sections:
        late = [line for line in section.lines if line.start_s is not None and line.start_s >= duration_s]
        yield from (Remark(line.number, "after_end", line.text) for line in late)
        kept = [line for line in section.lines if line not in late]
        text = segment_text(section.label, [line.text for line in kept])
        if texts[text]:
            texts[text] -= 1
        elif kept or not late:
            yield Remark(section.number, "no_room", kept[0].text if kept else f"[{section.label}]")


def _placed(section: Section, part: dict[str, Any]) -> TimedSection:
    return TimedSection(section.label, tuple(line.text for line in section.lines), part["start"], part["end"])

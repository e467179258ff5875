"""From manifests to a corpus: documents of every source, made in parallel and written in the manifest's order.

A song's documents depend on the spec, the source's name and the song's id alone, so that the files are the same for
any number of processes. Songs are worked off in parts; a part is whole or absent, a run that was killed goes on behind
its last part, and a source whose inputs have not changed since it was finished is left as it is.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.corpus import fingerprint
from megatron_music.corpus.contents import ContentsWriter, read_contents
from megatron_music.corpus.curation import leave_out_near_duplicates
from megatron_music.corpus.indexed import IndexedSource, IndexedWriter, prefix_file, source_names
from megatron_music.corpus.song_documents import (
    CODEC,
    TOKENIZER,
    VOCABULARY,
    document_context,
    part_songs,
    song_documents,
)
from megatron_music.corpus.spec import BuildSpec, SourceSpec
from megatron_music.corpus.workplace import workplace
from megatron_music.documents.document import Document, DocumentContext
from megatron_music.documents.tasks import TASKS
from megatron_music.errors import InputError
from megatron_music.files import atomic_path, read_json
from megatron_music.parallel import Workers
from megatron_music.progress import console, track
from megatron_music.songs.rejects import REJECTS, all_rejected, refuse_too_many, stream_rejects, write_rejects
from megatron_music.songs.song import Reject, Song

_WORK = ".build"


@dataclass(frozen=True)
class Part:
    """Songs that one worker turns into documents at a time, and where it writes them."""

    prefix: Path
    corpus: Path
    source: SourceSpec
    codec: str
    seed: int
    identity: str
    songs: tuple[Song | Reject, ...]


def build_corpus(spec: str | Path, out: str | Path, processes: int | None = None) -> dict[str, dict[str, Any]]:
    """Builds every source that a spec names into ``out`` and returns their sidecars by name.

    ``out`` then holds ``NAME.bin``, ``.idx``, ``.kind``, ``.json`` and ``.songs.parquet`` of every source,
    ``rejects.parquet``, ``near_duplicates.parquet`` where the spec asks for it, and copies of the vocabulary, the
    tokenizer and (where it was fitted) the codec. Raises InputError for a spec that can't be used, and for a source
    that yields no document; the rejects then say why.
    """
    plan = BuildSpec.read(spec)
    with workplace(out) as out, Workers(processes) as workers:
        _prepare(plan, out)
        plan = leave_out_near_duplicates(plan, out, out / _WORK, workers)
        unfinished = [source for source in plan.sources if not _finished(plan, source, out)]
        for source in unfinished:  # all at once, so that an old split of the songs never stands beside a new one
            prefix_file(out / source.name, ".json").unlink(missing_ok=True)
        try:
            for source in unfinished:
                _build_source(plan, source, out, workers)
        finally:
            _write_rejects_of_all(plan, out)
        for leftover in (out / _WORK).glob("*.parts"):
            shutil.rmtree(leftover)
    built = {source.name: read_json(out / f"{source.name}.json") for source in plan.sources}
    others = [name for name in source_names(out) if name not in built]
    if others:
        console.print(f"{out} also holds {', '.join(others)}, of earlier builds, which {plan.path} does not name")
    return built


def refuse_too_many_rejects(sources: Mapping[str, Mapping[str, Any]], out: str | Path, most_rejected: float) -> None:
    """Raises InputError for the first source, by its sidecar, of which more than this share of songs was rejected."""
    for name, about in sources.items():
        rejected = about["songs_rejected"]
        refuse_too_many(Path(out) / name, rejected, about["songs_used"] + rejected, most_rejected)


def _prepare(plan: BuildSpec, out: Path) -> None:
    """Puts the vocabulary, tokenizer and codec in place and takes outdated sources out of sight."""
    names = {source.name for source in plan.sources}
    outdated = []
    for sidecar in (prefix_file(out / name, ".json") for name in source_names(out)):
        about = read_json(sidecar)
        differing = [key for key, value in plan.identity().items() if about.get(key) != value]
        if differing and sidecar.stem not in names:
            what = f"was built with another {differing[0]} than {plan.path} names"
            raise InputError(sidecar, what, "name another folder, or add the source to the spec, or remove its files")
        outdated += [sidecar] if differing else []
    for sidecar in outdated:
        sidecar.unlink()
    for original, name in ((plan.vocabulary_path, VOCABULARY), (plan.tokenizer_path, TOKENIZER)):
        with atomic_path(out / name) as temporary:
            shutil.copyfile(original, temporary)
    if plan.codec_folder:
        with atomic_path(out / CODEC) as temporary:
            shutil.copytree(plan.codec_folder, temporary)
    elif (out / CODEC).is_dir():
        shutil.rmtree(out / CODEC)


def _finished(plan: BuildSpec, source: SourceSpec, out: Path) -> bool:
    """Whether the source is there, whole, and made from the same inputs."""
    sidecar = out / f"{source.name}.json"
    if not sidecar.is_file() or not _rejects_path(source, out).is_file():
        return False
    about = read_json(sidecar)
    if any(about.get(key) != value for key, value in plan.about(source).items()):
        return False
    try:
        return len(IndexedSource(out / source.name)) > 0
    except InputError:
        return False


def _build_source(plan: BuildSpec, source: SourceSpec, out: Path, workers: Workers) -> None:
    folder = out / _WORK / f"{source.name}-{fingerprint.of_value(plan.about(source))}.parts"
    folder.mkdir(parents=True, exist_ok=True)
    songs = plan.surveys[source.manifest].songs[source.split]
    missing = sum(not _is_whole(prefix) for prefix in _part_prefixes(folder, songs))
    jobs = _missing_parts(plan, source, out, folder, songs)
    for _ in track(workers.map(build_part, jobs), f"building {source.name}", total=missing):
        pass
    _join_parts(plan, source, out, list(_part_prefixes(folder, songs)))


def _part_prefixes(folder: Path, songs: int) -> Iterator[Path]:
    for number in range(-(-songs // part_songs(songs))):
        yield folder / f"{number:06d}"


def _is_whole(prefix: Path) -> bool:
    return prefix_file(prefix, ".json").is_file()


def _missing_parts(plan: BuildSpec, source: SourceSpec, out: Path, folder: Path, songs: int) -> Iterator[Part]:
    """The parts that no earlier run has finished, with their songs."""
    lines = plan.songs(source)
    for prefix in _part_prefixes(folder, songs):
        taken = tuple(islice(lines, part_songs(songs)))
        if not _is_whole(prefix):
            yield Part(prefix, out, source, plan.codec, plan.seed, folder.name, taken)


def build_part(part: Part) -> None:
    """Writes the documents of a part's songs as a small source of its own, its rejects in the sidecar."""
    context = document_context(part.corpus, part.codec, part.identity)
    task = TASKS[part.source.task]
    songs = {song.id: song for song in part.songs if isinstance(song, Song)}
    tally = _Tally()
    documents = _documents_of_part(part, context, tally)
    packed = task.pack(documents, context, part.source.options) if task.pack else ([made] for made in documents)
    with IndexedWriter(part.prefix) as writer, ContentsWriter(part.prefix) as contents:
        for members in packed:
            ids, kinds = (np.concatenate([getattr(member, name) for member in members]) for name in ("ids", "kinds"))
            for member in members:
                contents.add(writer.documents, songs[member.song_id], member.seconds)
            writer.add(ids, kinds)
        writer.about.update(asdict(tally), seconds=contents.seconds)


@dataclass
class _Tally:
    """What becomes of a part's songs; ``rejects`` hold their fields, ``left_out`` counts what documents lack of songs
    that are used."""

    songs_used: int = 0
    rejects: list[tuple[str, ...]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def _documents_of_part(part: Part, context: DocumentContext, tally: _Tally) -> Iterator[Document]:
    for song in part.songs:
        made = song if isinstance(song, Reject) else song_documents(song, part.source, part.seed, context)
        if isinstance(made, Reject):
            tally.rejects.append(astuple(replace(made, where=f"{part.source.name}: {made.where}")))
        else:
            tally.songs_used += 1
            for document in made:
                _add(document.left_out, tally.left_out)
                yield document


def _join_parts(plan: BuildSpec, source: SourceSpec, out: Path, prefixes: Sequence[Path]) -> None:
    """Writes the parts one after another as the source; its rejects and its table of songs are in place before."""
    used = rejected = 0
    left_out: dict[str, int] = {}
    with IndexedWriter(out / source.name, plan.about(source)) as writer, ContentsWriter(out / source.name) as contents:
        for prefix in prefixes:
            part = IndexedSource(prefix)
            contents.extend(read_contents(prefix), first_document=writer.documents)
            writer.extend(part)
            used += part.sidecar["songs_used"]
            rejected += len(part.sidecar["rejects"])
            _add(part.sidecar.get("left_out", {}), left_out)
        write_rejects(_rejects_path(source, out), _rejects_of_parts(prefixes))
        if not writer.documents:
            raise _nothing_built(plan, source, out)
        writer.about.update(songs_used=used, songs_rejected=rejected, seconds=contents.seconds, left_out=left_out)


def _add(counts: Mapping[str, int], to: dict[str, int]) -> None:
    for what, count in counts.items():
        if count:
            to[what] = to.get(what, 0) + count


def _rejects_of_parts(prefixes: Iterable[Path]) -> Iterator[Reject]:
    for prefix in prefixes:
        yield from (Reject(*fields) for fields in read_json(prefix_file(prefix, ".json"))["rejects"])


def _nothing_built(plan: BuildSpec, source: SourceSpec, out: Path) -> InputError:
    where = f"{plan.path}: sources.{source.name}"
    why = all_rejected(stream_rejects(_rejects_path(source, out)))
    if why is None:
        what = f"yields no document, {source.manifest} has no song for the split {source.split}"
        return InputError(where, what, "name another manifest or mend held_out")
    return InputError(where, f"yields no document, {why}", f"mend the songs or the options; {out / REJECTS} names each")


def _rejects_path(source: SourceSpec, out: Path) -> Path:
    return out / _WORK / f"{source.name}.{REJECTS}"


def _write_rejects_of_all(plan: BuildSpec, out: Path) -> None:
    paths = [_rejects_path(source, out) for source in plan.sources]
    write_rejects(out / REJECTS, (reject for path in paths if path.is_file() for reject in stream_rejects(path)))

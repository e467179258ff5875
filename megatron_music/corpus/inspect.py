"""Looking at a corpus: one document in words, and a table of all sources."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_music.corpus.build import TOKENIZER, VOCABULARY
from megatron_music.corpus.contents import read_songs_of_document
from megatron_music.corpus.indexed import IndexedSource, source_names
from megatron_music.errors import InputError
from megatron_music.songs.rejects import REJECTS, rejects_by_rule, stream_rejects, where_to_read
from megatron_music.tables import table
from megatron_music.vocabulary.kinds import AUDIO_KINDS, CODEBOOK_KINDS, LOSS_GROUPS, Kind
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

_AUDIO = -1
"""Stands for all audio kinds where a document is cut into runs of one kind."""


@dataclass(frozen=True)
class Part:
    """Tokens ``start`` to ``stop`` (exclusive) of a document in words.

    ``form`` is ``text``, ``special``, ``audio``, or ``problem`` for what is wrong with the tokens before it.
    """

    form: str
    words: str
    start: int
    stop: int


class DocumentReader:
    """A source of a corpus, with what it takes to understand its documents.

    Raises InputError where the source, or the corpus' vocabulary or tokenizer, is missing or damaged.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = Path(prefix)
        if self.prefix.is_dir():
            raise InputError(prefix, "is a folder", f"name a source in it, {prefix}/NAME")
        self.source = IndexedSource(prefix)
        self.vocabulary = Vocabulary.load(self.prefix.parent / VOCABULARY)
        self.tokenizer = TextTokenizer(self.prefix.parent / TOKENIZER, self.vocabulary)
        self.frames_per_second: float = self.source.sidecar.get("options", {}).get("frames_per_second", 50.0)

    def tokens(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 (N,) and kinds uint8 (N,); raises InputError where there is no such document."""
        if not 0 <= document < len(self.source):
            raise InputError(self.prefix, f"has no document {document}", f"name 0 to {len(self.source) - 1}")
        return self.source.document(document)

    def parts(self, ids: np.ndarray, kinds: np.ndarray) -> list[Part]:
        """The parts of a document."""
        return list(document_parts(ids, kinds, self.vocabulary, self.tokenizer, self.frames_per_second))


def inspect_source(prefix: str | Path, document: int = 0) -> str:
    """A heading, the songs of one document and the document in words.

    Raises InputError where there is no such source or document.
    """
    reader = DocumentReader(prefix)
    ids, kinds = reader.tokens(document)
    heading = [f"{reader.prefix.name}, document {document} of {len(reader.source)}: {tokens_in_words(kinds)}"]
    heading += [song_in_words(song) for song in read_songs_of_document(prefix, document)]
    words = "".join(part.words for part in reader.parts(ids, kinds))
    return "\n".join(heading) + f"\n\n{words}"


def tokens_in_words(kinds: np.ndarray) -> str:
    """How many tokens a document has, by group of kinds."""
    by_group = _by_group(Counter(np.asarray(kinds).tolist()))
    counts = ", ".join(f"{count:,} {name}" for name, count in by_group.items() if count)
    return f"{len(kinds):,} tokens ({counts})"


def song_in_words(song: dict) -> str:
    """A row of a source's table of songs in one line."""
    about = [song["language"], song["genres"], f"{song['seconds']:.1f} s" if song["seconds"] else ""]
    return f"{song['id']} ({'; '.join(filter(None, about))})" if any(about) else song["id"]


def document_in_words(
    ids: np.ndarray,
    kinds: np.ndarray,
    vocabulary: Vocabulary,
    tokenizer: TextTokenizer,
    frames_per_second: float = 50.0,
) -> str:
    """Text as text, special tokens by name, audio as ``[vocal+accompaniment 12.4 s]``, and problems as ``[! ...]``."""
    return "".join(part.words for part in document_parts(ids, kinds, vocabulary, tokenizer, frames_per_second))


def document_parts(
    ids: np.ndarray,
    kinds: np.ndarray,
    vocabulary: Vocabulary,
    tokenizer: TextTokenizer,
    frames_per_second: float = 50.0,
) -> Iterator[Part]:
    """The parts whose words ``document_in_words`` puts together; each part but a problem is a run of one kind."""
    ids, kinds = np.asarray(ids), np.asarray(kinds)
    for kind, start, stop in _runs(kinds):
        run_ids, run_kinds = ids[start:stop], kinds[start:stop]
        if kind == _AUDIO:
            form, words = "audio", _audio_in_words(run_kinds, frames_per_second)
            problems = _audio_problems(run_ids, run_kinds, vocabulary)
        elif kind == Kind.TEXT:
            form, words = "text", tokenizer.decode(run_ids.tolist())
            problems = _foreign(run_ids >= vocabulary.text_size, "text")
        else:
            special = np.isin(run_ids, list(vocabulary.specials.values()))
            names = "".join(vocabulary.describe(id) for id in run_ids[special].tolist())
            form, words = "special", names.replace("<EOA>", "<EOA>\n")
            problems = _foreign(~special, "special token")
        yield Part(form, words, start, stop)
        if problems:
            yield Part("problem", problems, start, stop)
    if not len(ids) or ids[-1] != vocabulary.special("<EOD>"):
        yield Part("problem", "[! no <EOD> at the end]", len(ids), len(ids))
    opened, closed = (int(np.sum(ids == vocabulary.special(name))) for name in ("<SOA>", "<EOA>"))
    if opened != closed:
        yield Part("problem", f"[! {opened} <SOA> but {closed} <EOA>]", len(ids), len(ids))


def corpus_table(corpus: str | Path) -> str:
    """All sources of a corpus, with songs, documents and tokens by group of kinds; below it the rejects by rule."""
    corpus = Path(corpus)
    sidecars = {name: source.sidecar for name, source in sources_of_corpus(corpus).items()}
    groups = [name for name in LOSS_GROUPS if any(tokens_by_group(about)[name] for about in sidecars.values())]
    rows = [["source", "task", "split", "songs", "rejected", "documents", "tokens", *groups]]
    for name, about in sidecars.items():
        counted = [about.get(key, 0) for key in ("songs_used", "songs_rejected", "documents", "tokens")]
        tokens = [tokens_by_group(about)[group] for group in groups]
        rows.append([name, about.get("task", ""), about.get("split", ""), *(f"{n:,}" for n in [*counted, *tokens])])
    lines = [table(rows, left=3)]
    for name, about in sidecars.items():
        lines += [f"left out of {name}: {n:,} {what}" for what, n in sorted(about.get("left_out", {}).items())]
    if (corpus / REJECTS).is_file():
        rules = Counter(reject.rule for reject in stream_rejects(corpus / REJECTS))
        lines += [*rejects_by_rule(rules), *where_to_read(corpus, rules.total())] if rules else []
    return "\n".join(lines)


def sources_of_corpus(corpus: str | Path) -> dict[str, IndexedSource]:
    """The finished sources of a corpus by name; raises InputError where there is none."""
    names = source_names(corpus)
    if not names:
        raise InputError(corpus, "holds no source", "name a folder that `build` has written")
    return {name: IndexedSource(Path(corpus) / name) for name in names}


def tokens_by_group(about: dict) -> dict[str, int]:
    """Tokens of each of ``LOSS_GROUPS`` that a source's sidecar counts."""
    by_kind = about.get("tokens_by_kind", {})
    return _by_group(Counter({Kind[name.upper()]: count for name, count in by_kind.items()}))


def _by_group(tokens: Counter) -> dict[str, int]:
    return {name: sum(tokens[kind] for kind in kinds) for name, kinds in LOSS_GROUPS.items()}


def _runs(kinds: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Kind (``_AUDIO`` for all of audio), start and stop of each longest run of one kind."""
    merged = np.where(np.isin(kinds, AUDIO_KINDS), _AUDIO, kinds.astype(np.int64))
    edges = [0, *(np.flatnonzero(np.diff(merged)) + 1).tolist(), len(merged)]
    for start, stop in zip(edges, edges[1:], strict=False):
        if stop > start:
            yield int(merged[start]), start, stop


def _audio_in_words(kinds: np.ndarray, frames_per_second: float) -> str:
    counts = _audio_counts(kinds)
    names = "+".join(kind.name.lower() for kind in counts if kind not in CODEBOOK_KINDS)
    residuals = [CODEBOOK_KINDS.index(kind) + 1 for kind in counts if kind in CODEBOOK_KINDS]
    if residuals:
        span = f"codebooks {residuals[0]}-{residuals[-1]}" if len(residuals) > 1 else f"codebook {residuals[0]}"
        names = f"{names}, {span}" if names else span
    return f"[{names} {max(counts.values()) / frames_per_second:.1f} s]"


def _audio_problems(ids: np.ndarray, kinds: np.ndarray, vocabulary: Vocabulary) -> str:
    counts = _audio_counts(kinds)
    words = ""
    if len(set(counts.values())) > 1:
        unequal = ", ".join(f"{count} {kind.name.lower()}" for kind, count in counts.items())
        words += f"[! unequal lengths: {unequal}]"
    for kind in counts:
        codebook = CODEBOOK_KINDS.index(kind) + 1 if kind in CODEBOOK_KINDS else 0
        of_kind = ids[kinds == kind]
        valid = np.zeros(len(of_kind), bool)
        for codec in vocabulary.codecs.values():
            if codebook < codec.codebooks:
                valid |= np.isin(of_kind, codec.codebook_ids(codebook))
        words += _foreign(~valid, f"{kind.name.lower()} code of codebook {codebook}")
    return words


def _audio_counts(kinds: np.ndarray) -> dict[Kind, int]:
    return {kind: int(np.sum(kinds == kind)) for kind in AUDIO_KINDS if np.any(kinds == kind)}


def _foreign(wrong: np.ndarray, noun: str) -> str:
    return f"[! {int(wrong.sum())} ids that are no {noun}]" if wrong.any() else ""

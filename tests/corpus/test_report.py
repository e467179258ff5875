"""The report page: the numbers of what was built, all rejects, nothing that runs or is fetched, the right sound."""

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from typer.testing import CliRunner

from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.cli import app
from megatron_music.corpus import report
from megatron_music.corpus.contents import SCHEMA, contents_in_batches, read_contents, read_songs_of_document
from megatron_music.corpus.curation import SCHEMA as NEAR_DUPLICATES_SCHEMA
from megatron_music.corpus.indexed import IndexedSource
from megatron_music.corpus.report import write_report
from megatron_music.corpus.statistics import Distribution, measure_corpus
from megatron_music.errors import InputError
from megatron_music.songs.codes import load_codes
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.rejects import read_rejects, write_rejects
from megatron_music.songs.song import Reject
from megatron_music.vocabulary.vocabulary import Vocabulary

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tables by id as rows of cells' texts, documents as what stands in them, and every tag and address."""

    def __init__(self, path: Path):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.documents: list[dict] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self._table, self._cell, self.text = "", False, path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        self.handlers += [name for name in attributes if name.startswith("on")]
        if tag == "table":
            self._table = attributes["id"]
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self._cell = True
        elif tag == "article":
            self.documents.append({"text": "", "sounds": []})
        elif tag == "audio":
            stream = io.BytesIO(base64.b64decode(attributes["src"].removeprefix("data:audio/mpeg;base64,")))
            self.documents[-1]["sounds"].append(soundfile.read(stream, always_2d=True))

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False
        if tag == "article":
            self.documents.append({"text": "", "sounds": []})

    def handle_data(self, data):
        if self._cell:
            self.tables[self._table][-1][-1] += data
        elif self.documents:
            self.documents[-1]["text"] += data

    def table(self, id: str) -> dict[str, dict[str, str]]:
        """Cells by the first cell of their row and the heading of their column."""
        heading, *rows = self.tables[id]
        return {row[0]: dict(zip(heading[1:], row[1:], strict=True)) for row in rows}

    def readings(self) -> list[dict]:
        """The documents with a heading."""
        found = [document for document in self.documents if " document " in document["text"]]
        return [document | {"text": document["text"].strip()} for document in found]


@pytest.fixture(scope="module")
def page(sung_corpus, tmp_path_factory) -> Page:
    return Page(write_report(sung_corpus, tmp_path_factory.mktemp("report") / "page.html", documents=8, audio=False))


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_sources_and_kinds_are_those_of_the_sidecars(page, sung_corpus):
    sources, kinds = page.table("sources"), page.table("kinds")
    assert list(sources) == ["cot", "cot_held_out", "dual", "residual", "residual_rest"]
    for name, cells in sources.items():
        about = json.loads((sung_corpus / f"{name}.json").read_text())
        for field, column in (("songs_used", "songs"), ("songs_rejected", "rejected"), ("documents", "documents"),
                              ("tokens", "tokens")):  # fmt: skip
            assert number(cells[column]) == about[field], (name, column)
        assert cells["task"] == about["task"] and cells["split"] == about["split"].replace("_", " ")
        assert float(cells["hours"]) == round(about["seconds"] / 3600, 2)
        counted = {column: number(cell) for column, cell in kinds[name].items() if cell}
        assert sum(counted.values()) == about["tokens"]
        assert counted["special"] == about["tokens_by_kind"]["special"]
    assert number(sources["cot"]["rejected"]) == 2 and number(sources["cot"]["songs"]) == 4


def test_tasks_languages_and_tags_have_their_songs_and_seconds(sung_corpus, page):
    numbers = measure_corpus(sung_corpus)
    # cot: 14 + 15 + 16 + 17 s; its held-out song 20 s; dual: the same four and mumble's 18 s; residual, twice: whole
    # windows of 6 s of all songs but the held-out one, 12 s of four, 18 s of mumble and of no_band.
    seconds = {
        "de": 14 + 20 + 14 + 2 * 12,
        "en": 15 + 16 + 15 + 16 + 18 + 2 * (12 + 12 + 18),
        "": 17 + 17 + 2 * 12,
        "fr": 2 * 18,
    }
    assert {name: share.seconds for name, share in numbers.languages.items()} == pytest.approx(seconds)
    assert {name: share.songs for name, share in numbers.languages.items()} == {"de": 5, "en": 11, "": 4, "fr": 2}
    total = sum(source.source.total_tokens for source in numbers.sources.values())
    assert sum(share.tokens for share in numbers.languages.values()) == pytest.approx(total)
    tags = {"folk": 5 + 4 + 4 + 3, "female": 4, "male": 8, "rock": 4, "<b>bold</b>": 4, "": 2}
    assert {name: share.songs for name, share in numbers.tags.items()} == tags
    assert {name: number(cells["appearances"]) for name, cells in page.table("tags").items()} == {
        name or "no tags": count for name, count in tags.items()
    }
    assert set(page.table("languages")) == {"de", "en", "fr", "not stated"}
    assert set(page.table("tasks")) == {"lyrics_to_song", "lyrics_to_song, held out", "unconditional", "residual"}
    tokens = {name: made.source.total_tokens for name, made in numbers.sources.items()}
    assert number(page.table("tasks")["residual"]["tokens"]) == tokens["residual"] + tokens["residual_rest"]


def test_lengths_are_those_of_the_index(page, sung_corpus):
    for name, cells in page.table("token-lengths").items():
        lengths = np.sort(IndexedSource(sung_corpus / name).lengths)
        assert number(cells["longest"]) == lengths[-1]
        assert number(cells["median"]) == lengths[(len(lengths) - 1) // 2]
    assert page.table("second-lengths")["cot"]["longest"] == "17.0"
    assert page.table("second-lengths")["cot"]["median"] == "15.0"


def test_every_reject_is_there_with_its_source(page, sung_corpus):
    rejects = read_rejects(sung_corpus / "rejects.parquet")
    table = page.table("rejects")
    assert {rule: number(cells["rejects"]) for rule, cells in table.items()} == {"codes_missing": 2, "few_lyrics": 1}
    for reject in rejects:
        assert reject.id in table[reject.rule]["examples, drawn at random"]
        assert reject.detail in table[reject.rule]["examples, drawn at random"]
    assert table["few_lyrics"]["source"] == "cot"


def test_examples_of_rejects_are_different_songs_drawn_by_seed(tmp_path, partial):
    rejects = [Reject(f"song-{n % 100}", "few_lyrics", "", f"source-{n // 100}: m", str(n % 100)) for n in range(300)]
    write_rejects(partial / "rejects.parquet", rejects)
    drawn = {}
    for seed in (0, 0, 1):
        rejected = measure_corpus(partial, seed).rejects["few_lyrics"]
        assert rejected.count == 300 and rejected.sources == {f"source-{n}": 100 for n in range(3)}
        ids = [reject.id for reject in rejected.examples]
        assert len(set(ids)) == 5 and drawn.setdefault(seed, ids) == ids
    assert drawn[0] != drawn[1]
    page = Page(write_report(partial))
    assert page.table("rejects")["few_lyrics"]["values"] == "49.5 (0 to 99)"


def test_lyrics_and_names_from_the_web_stay_text(page):
    readings = " ".join(document["text"] for document in page.readings())
    assert "<b>bold</b>" in page.table("tags")
    whole = page.text
    assert "<script>alert" not in whole and "<img" not in whole and "<b>bold" not in whole
    assert page.tags.count("script") == 1 and page.handlers == []
    assert all(address.startswith("#") for address in page.addresses)
    assert "la la" in readings


def test_an_evil_song_is_read_as_it_is_written(sung_corpus, tmp_path):
    page = Page(write_report(sung_corpus, tmp_path / "page.html", documents=10_000, audio=False))
    (evil,) = (document["text"] for document in page.readings() if document["text"].startswith("cot document 3 of 4"))
    assert "<script>alert(1)</script> · <b>bold</b>, folk · 17.0 s" in evil
    assert "</pre><script>alert(3)" in evil and "<img src=x onerror=alert(2)>" in evil
    assert page.tags.count("script") == 1 and "img" not in page.tags and page.tags.count("b") == 4


def test_the_sound_is_that_of_the_documents_codes(sung_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LISTEN_SECONDS", 9.0)
    page = Page(write_report(sung_corpus, tmp_path / "page.html", documents=10_000))
    assert page.tags.count("audio") > 30 and all(address.startswith(("data:", "#")) for address in page.addresses)
    codec = EmbeddedCodec.load(sung_corpus / "codec")
    codec_range = Vocabulary.load(sung_corpus / "vocabulary.yaml").codec()
    songs = {song.id: song for song in read_manifest(sung_corpus.parent / "codes" / "manifest.jsonl")}
    by_name = {document["text"].split(" of ")[0]: document["sounds"] for document in page.readings()}
    codes = {track: load_codes(songs["alone"], track, codec_range) for track in ("mix", "vocals", "accompaniment")}

    # Of two segments of 7 s each is to have 6 s, and the second gets what is left of 9.
    (stereo, rate), (second, _) = by_name["cot document 0"]
    assert rate == 16_000 and stereo.shape == (6 * 16_000, 2) and second.shape == (3 * 16_000, 2)
    for side, track in enumerate(("vocals", "accompaniment")):
        for samples, expected in ((stereo, codes[track][:1, :300]), (second, codes[track][:1, 350:500])):
            sound = codec.decode(expected)
            assert np.corrcoef(samples[:, side], sound)[0, 1] > 0.99
            np.testing.assert_allclose(np.sqrt(np.mean(samples[:, side] ** 2)), np.sqrt(np.mean(sound**2)), rtol=0.02)

    # Windows of stage 2 sound with all their codebooks, also where codebook 0 stands in the first half alone.
    expected, coarse = codec.decode(codes["mix"][:3, :300]), codec.decode(codes["mix"][:1, :300])
    for name in ("residual", "residual_rest"):
        windows = [samples[:, 0] for samples, _ in by_name[f"{name} document 0"]]
        assert [len(samples) for samples in windows] == [6 * 16_000, 3 * 16_000]
        assert np.corrcoef(windows[0], expected)[0, 1] > 0.99 > 0.98 > np.corrcoef(coarse, expected)[0, 1]

    (whole,) = by_name["dual document 0"]
    assert len(whole[0]) == 9 * 16_000 and "first 9.0 of 14.0 s" in page.text


def test_the_same_seed_draws_the_same_page(sung_corpus, tmp_path):
    first, again, other = (
        write_report(sung_corpus, tmp_path / f"{name}.html", documents=6, seed=seed, audio=False).read_bytes()
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again != other


def test_documents_are_spread_over_the_sources(sung_corpus, tmp_path):
    def drawn(documents: int) -> dict[str, int]:
        page = Page(write_report(sung_corpus, tmp_path / "page.html", documents=documents, audio=False))
        names = [document["text"].split(" document ")[0].strip() for document in page.readings()]
        return {name: names.count(name) for name in names}

    assert drawn(0) == {}
    assert drawn(3) == {"cot": 1, "cot_held_out": 1, "dual": 1}
    # The held-out source has one document, and the others give in its place.
    assert drawn(13) == {"cot": 3, "cot_held_out": 1, "dual": 3, "residual": 3, "residual_rest": 3}
    assert drawn(10_000) == {"cot": 4, "cot_held_out": 1, "dual": 5, "residual": 6, "residual_rest": 6}


@pytest.fixture
def partial(sung_corpus, tmp_path) -> Path:
    """One source alone, as a build that was stopped, or that is older than the table of songs, leaves it."""
    folder = tmp_path / "partial"
    folder.mkdir()
    for name in ("cot.bin", "cot.idx", "cot.kind", "cot.json", "vocabulary.yaml", "tokenizer.model"):
        shutil.copy(sung_corpus / name, folder / name)
    (folder / "dual.bin").touch()
    return folder


def test_a_partial_corpus_without_codec_rejects_and_songs_is_shown_as_far_as_it_is(partial):
    path = write_report(partial)
    assert path == partial / "report.html"
    page = Page(path)
    assert list(page.table("sources")) == ["cot"] and len(page.readings()) == 4
    assert "make this page with the weights of embedded: report CORPUS --weights" in page.text
    assert "No rejects.parquet yet" in page.text
    assert not {"languages", "tags", "second-lengths", "rejects"} & set(page.tables) and "audio" not in page.tags


def test_weights_give_a_corpus_without_codec_its_sound(partial, sung_corpus):
    page = Page(write_report(partial, weights=sung_corpus.parent / "codes" / "codec"))
    assert all(len(document["sounds"]) == 2 for document in page.readings())


def test_a_document_with_foreign_ids_is_shown_with_its_problem(partial, sung_corpus):
    ids = np.fromfile(partial / "cot.bin", "<i4")
    kinds = np.fromfile(partial / "cot.kind", np.uint8)
    ids[np.flatnonzero(kinds == 2)[0]] += 256
    ids.tofile(partial / "cot.bin")
    page = Page(write_report(partial, weights=sung_corpus / "codec"))
    damaged, *whole = page.readings()
    assert "[! 1 ids that are no vocal code of codebook 0]" in damaged["text"]
    assert "This document can't be decoded" in damaged["text"] and damaged["sounds"] == []
    assert all(len(document["sounds"]) == 2 for document in whole)


def test_what_can_not_be_shown_ends_in_one_line(sung_corpus, partial, tmp_path):
    with pytest.raises(InputError, match="holds no source; name a folder that `build` has written"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a folder; name a file"):
        write_report(sung_corpus, tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        write_report(sung_corpus, tmp_path / "page.html", weights=tmp_path / "nowhere")
    songs = read_contents(sung_corpus / "dual")
    pq.write_table(songs, partial / "cot.songs.parquet")
    with pytest.raises(InputError, match="names document 4 of 4; build the source again"):
        write_report(partial)
    assert not (partial / "report.html").exists()


def test_the_verb_writes_the_page_beside_the_corpus_or_where_it_is_told(partial, tmp_path):
    silent = CliRunner().invoke(app, ["report", str(partial), "--no-audio", "--documents", "2", "--seed", "3"])
    assert (silent.exit_code, silent.output.split()) == (0, [str(partial / "report.html")])
    assert (partial / "report.html").read_bytes() == write_report(
        partial, tmp_path / "same.html", documents=2, seed=3, audio=False
    ).read_bytes()
    told = CliRunner().invoke(app, ["report", str(partial), "--out", str(tmp_path / "new" / "page.html")])
    assert told.exit_code == 0 and (tmp_path / "new" / "page.html").is_file()


def test_near_duplicates_are_counted_by_the_song_that_is_kept(partial):
    pairs = [("a", "x", 0.9), ("b", "x", 0.5), (EVIL, "y", 0.25)]
    rows = [
        {"id": id, "manifest": "m", "rule": "near_duplicate", "kept_id": kept, "kept_manifest": "m", "similarity": near}
        for id, kept, near in pairs
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=NEAR_DUPLICATES_SCHEMA), partial / "near_duplicates.parquet")
    page = Page(write_report(partial))
    assert "Songs left out: 3, because their codes are nearly those of 2 that are kept; at most 2 for one" in page.text
    assert page.table("near-duplicates") == {
        id: {"kept": kept, "similarity": f"{near:.2f}"} for id, kept, near in pairs
    }
    assert page.tags.count("script") == 1
    (partial / "near_duplicates.parquet").write_text("junk")
    with pytest.raises(InputError, match="is not a table of near-duplicates"):
        write_report(partial)


def test_no_piece_of_a_table_divides_a_document(tmp_path):
    documents = [0, 1, 1, 1, 2, 3, 3, 4]
    rows = [
        {"document": document, "id": f"clip-{row}", "language": "", "genres": "", "seconds": 1.0}
        for row, document in enumerate(documents)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "speech.songs.parquet", row_group_size=2)
    pieces = [piece.to_pylist() for piece in contents_in_batches(tmp_path / "speech")]
    assert [row for piece in pieces for row in piece] == rows
    assert [[row["document"] for row in piece] for piece in pieces] == [[0], [1, 1, 1, 2], [3, 3], [4]]
    assert [row["id"] for row in read_songs_of_document(tmp_path / "speech", 1)] == ["clip-1", "clip-2", "clip-3"]


def test_a_distribution_counts_exactly():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 5000, 10_000)
    made = Distribution(1)
    for chunk in np.array_split(lengths, 7):
        made.add(chunk)
    for share in (0.05, 0.5, 0.95, 1.0):
        assert made.quantile(share) == np.quantile(lengths, share, method="inverted_cdf")
    edges = np.geomspace(0.9, 5100, 20)
    np.testing.assert_array_equal(made.histogram(edges), np.histogram(lengths, edges)[0])

"""From manifests to a corpus: known answers, one result for any number of processes, rejects, bad specs."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import yaml
from building import FRAMES, SOURCES, contents, rules, song_line, write_lines, write_spec
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.corpus.build import build_corpus
from megatron_music.corpus.contents import read_contents
from megatron_music.corpus.indexed import IndexedSource
from megatron_music.corpus.inspect import corpus_table, document_in_words, inspect_source
from megatron_music.corpus.stream import PhaseData, SampleStream
from megatron_music.errors import InputError
from megatron_music.songs.rejects import read_rejects
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary


def test_the_published_example_has_its_known_digest(tmp_path, yue_data, repository):
    spec = {
        "vocabulary": str(repository / "tokenizers" / "yue.yaml"),
        "tokenizer": str(yue_data / "tokenizer.model"),
        "sources": {"cot": {"manifest": str(yue_data / "songs.jsonl"), "task": "lyrics_to_song"}},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    about = build_corpus(tmp_path / "spec.yaml", tmp_path / "corpus", processes=1)["cot"]
    assert about["documents"] == 4 and about["tokens"] == 34_652
    digest = hashlib.sha256((tmp_path / "corpus" / "cot.bin").read_bytes()).hexdigest()
    assert digest == "d5828fa906ef87aec8586fb98098dc208004ca193d7a80062886996a79d02c18"


def test_a_manifest_of_yues_layout_goes_straight_to_build(workspace, monkeypatch, capsys):
    """As ``finetune/example/jsonl`` names ``example/npy``, from whatever folder it is built."""
    sources = {"cot": {"manifest": "finetune/example/jsonl/dummy.jsonl", "task": "lyrics_to_song"}}
    spec = write_spec(workspace, sources={"cot": SOURCES["cot"]})
    plain = build_corpus(spec, workspace / "plain", processes=1)["cot"]
    example = workspace / "finetune" / "example"
    (workspace / "songs").rename(workspace / "npy")
    (example / "jsonl").mkdir(parents=True)
    (workspace / "npy").rename(example / "npy")
    lines = [json.loads(line) for line in (example / "npy" / "manifest.jsonl").read_text().splitlines()]
    for line in lines:
        for field in ("codec", "vocals_codec", "instrumental_codec"):
            line[field] = f"./example/npy/{line[field]}"
        for segment in line["splitted_lyrics"]["segmented_lyrics"]:
            segment |= {name: float(segment[name]) for name in ("codec_frame_start", "codec_frame_end")}
    (example / "jsonl" / "dummy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir("/")
    capsys.readouterr()
    about = build_corpus(write_spec(workspace, sources=sources), workspace / "out", processes=1)["cot"]
    assert (about["documents"], about["tokens"]) == (plain["documents"], plain["tokens"]) == (20, plain["tokens"])
    assert (workspace / "out" / "cot.bin").read_bytes() == (workspace / "plain" / "cot.bin").read_bytes()
    assert f"its paths are taken relative to {workspace / 'finetune'}" in capsys.readouterr().err
    (example / "npy").rename(example / "elsewhere")
    with pytest.raises(InputError, match="20 by codes_missing"):
        build_corpus(write_spec(workspace, sources=sources), workspace / "out", processes=1)
    assert f"are in none of {example / 'jsonl'}, {example}, {workspace / 'finetune'}," in capsys.readouterr().err


def test_a_corpus_is_whole_and_self_contained(workspace):
    summary = build_corpus(workspace / "spec.yaml", workspace / "corpus", processes=1)
    assert sorted(summary) == sorted(SOURCES)
    about = json.loads((workspace / "corpus" / "residual.json").read_text())
    assert about == summary["residual"]
    assert about["vocabulary"]["name"] == "small" and about["codec"]["name"] == "embedded"
    assert about["task"] == "residual" and about["options"]["min_distinct_codes"] == 5
    assert (about["songs_used"], about["songs_rejected"], about["documents"]) == (20, 0, 60)
    for name in ("vocabulary.yaml", "tokenizer.model"):
        assert (workspace / "corpus" / name).read_bytes() == (workspace / name).read_bytes()
    assert (workspace / "corpus" / "codec" / "codec.json").read_text() == "{}"
    for name, about in summary.items():
        source = IndexedSource(workspace / "corpus" / name)
        kinds = np.concatenate([source.document(index)[1] for index in range(len(source))])
        counted = {Kind(kind).name.lower(): int(np.sum(kinds == kind)) for kind in np.unique(kinds)}
        assert counted == about["tokens_by_kind"] and sum(counted.values()) == about["tokens"]
    stream = SampleStream(workspace / "corpus", [PhaseData(128, 40, {"cot": 2, "icl": 1})], seed=0)
    assert {stream.sample(index).source for index in range(40)} == {"cot", "icl"}


def test_a_table_beside_the_tokens_tells_which_song_stands_in_which_document(workspace):
    summary = build_corpus(write_spec(workspace), workspace / "out", processes=1)
    songs = [f"song-{number:03d}" for number in range(20)]
    for name, each in (("cot", 1), ("residual", 3)):
        rows = read_contents(workspace / "out" / name).to_pylist()
        assert [row["document"] for row in rows] == list(range(20 * each))
        assert [row["id"] for row in rows] == [song for song in songs for _ in range(each)]
        assert {(row["language"], row["genres"]) for row in rows} == {("", "folk, female, slow")}
        # 20 s of a song in all its segments; three windows of 6 s in each of its tracks.
        assert {row["seconds"] for row in rows} == {20.0 if name == "cot" else 18.0}
        assert summary[name]["seconds"] == sum(row["seconds"] for row in rows)


def test_what_documents_lack_of_their_songs_is_counted(workspace):
    lines = [song_line(number) for number in range(4)]
    for number, spans in ((0, [(0, 500), (500, FRAMES + 9)]), (2, [(0, 49), (49, 98), (98, FRAMES)])):
        texts = [{"line_content": "la", "codec_frame_start": a, "codec_frame_end": b} for a, b in spans]
        lines[number]["splitted_lyrics"]["segmented_lyrics"] = texts
    write_lines(workspace, lines)
    codes_KT = np.load(workspace / "songs" / "1.mix.npy")
    codes_KT[0, :600] = 7
    np.save(workspace / "songs" / "1.mix.npy", codes_KT)
    codes_KT[0] = 7
    np.save(workspace / "songs" / "3.mix.npy", codes_KT)
    summary = build_corpus(write_spec(workspace), workspace / "corpus", processes=2)
    left_out = {"segments that end behind the codes": 1, "segments shorter than 1 s": 2}
    assert summary["cot"]["left_out"] == summary["icl"]["left_out"] == left_out
    assert summary["residual"]["left_out"] == {"windows of fewer than 5 distinct codes": 5}
    assert summary["mix"]["left_out"] == {}
    told = [line for line in corpus_table(workspace / "corpus").splitlines() if line.startswith("left out")]
    assert "left out of cot: 2 segments shorter than 1 s" in told and len(told) == 5


def test_a_source_of_which_too_much_is_rejected_is_told_behind_all_else(workspace):
    (workspace / "songs" / "0.vocals.npy").unlink()
    write_lines(workspace, [song_line(number) for number in range(4)])
    spec, out = write_spec(workspace, sources={"mix": SOURCES["mix"], "cot": SOURCES["cot"]}), workspace / "corpus"
    command = ["build", str(spec), str(out), "--processes", "1"]
    ran = CliRunner().invoke(cli.app, [*command, "--max-rejected", "0.25"])
    assert (ran.exit_code, ran.stdout) == (0, corpus_table(out) + "\n")
    table = ["rejected     1", "  codes_missing      1", f"  each with its reason: megatron-music rejects {out}"]
    assert ran.stdout.splitlines()[-3:] == table
    again = CliRunner().invoke(cli.app, [*command, "--max-rejected", "0.2"])
    assert again.stdout == ran.stdout and str(again.exception).startswith(
        f"{out}/cot: 1 of 4 songs were rejected, a larger share than --max-rejected 0.2; what was written is whole"
    )


def test_any_number_of_processes_gives_the_same_bytes(workspace):
    build_corpus(workspace / "spec.yaml", workspace / "one", processes=1)
    build_corpus(workspace / "spec.yaml", workspace / "two", processes=2)
    assert contents(workspace / "one") == contents(workspace / "two")


def test_a_songs_document_does_not_depend_on_its_neighbours(workspace):
    build_corpus(workspace / "spec.yaml", workspace / "all", processes=1)
    write_lines(workspace, [song_line(number) for number in (17, 4)])
    build_corpus(workspace / "spec.yaml", workspace / "two", processes=1)
    whole, part = IndexedSource(workspace / "all" / "icl"), IndexedSource(workspace / "two" / "icl")
    for ours, theirs in ((0, 17), (1, 4)):
        np.testing.assert_array_equal(part.document(ours)[0], whole.document(theirs)[0])


def test_finished_sources_are_kept_and_outdated_ones_are_built_again(workspace):
    corpus = workspace / "corpus"
    first = build_corpus(workspace / "spec.yaml", corpus, processes=1)
    times = {name: (corpus / f"{name}.bin").stat().st_mtime_ns for name in SOURCES}
    changed = SOURCES | {"mix": SOURCES["mix"] | {"tags": "as_written"}}
    second = build_corpus(write_spec(workspace, sources=changed), corpus, processes=1)
    rebuilt = {name for name in SOURCES if (corpus / f"{name}.bin").stat().st_mtime_ns != times[name]}
    assert rebuilt == {"mix"} and second["mix"]["fingerprint"] != first["mix"]["fingerprint"]
    np.save(workspace / "songs" / "3.mix.npy", np.full((8, FRAMES), 7, np.int16))
    third = build_corpus(workspace / "spec.yaml", corpus, processes=1)
    assert third["mix"]["files"] != second["mix"]["files"]
    document, _ = IndexedSource(corpus / "mix").document(3)
    assert np.sum(document == Vocabulary.load(corpus / "vocabulary.yaml").codec().first + 7) == FRAMES
    os.truncate(corpus / "cot.kind", 100)
    build_corpus(workspace / "spec.yaml", corpus, processes=1)
    assert len(IndexedSource(corpus / "cot")) == 20


def test_sources_of_earlier_builds_are_told(workspace, capsys):
    build_corpus(workspace / "spec.yaml", workspace / "corpus", processes=1)
    assert capsys.readouterr().err == ""
    spec = write_spec(workspace, sources={name: SOURCES[name] for name in SOURCES if name not in ("mix", "icl")})
    build_corpus(spec, workspace / "corpus", processes=1)
    told = f"{workspace}/corpus also holds icl, mix, of earlier builds, which {spec} does not name\n"
    assert capsys.readouterr().err == told


def test_held_out_songs_are_in_no_training_source(workspace):
    sources = {"train": SOURCES["cot"], "test": SOURCES["cot"] | {"split": "held_out"}}
    spec = write_spec(workspace, held_out=["song-00[12]", "song-019"], sources=sources)
    summary = build_corpus(spec, workspace / "corpus", processes=1)
    assert (summary["train"]["documents"], summary["test"]["documents"]) == (17, 3)
    with pytest.raises(InputError, match="held_out: no song has an id like 'sing-.'"):
        build_corpus(write_spec(workspace, held_out=["sing-*"], sources=sources), workspace / "corpus")


def test_unusable_songs_are_rejected_by_name_and_never_get_in(workspace):
    folder = workspace / "songs"
    (folder / "0.vocals.npy").unlink()
    codes_KT = np.load(folder / "1.vocals.npy")
    codes_KT[0, 500] = 256
    np.save(folder / "1.vocals.npy", codes_KT)
    whole = (folder / "2.vocals.npy").read_bytes()
    (folder / "2.vocals.npy").write_bytes(whole[: len(whole) // 2])
    np.save(folder / "3.vocals.npy", np.load(folder / "3.vocals.npy")[:, :-11])
    np.save(folder / "4.vocals.npy", np.load(folder / "4.vocals.npy")[:, :-10])
    np.save(folder / "5.vocals.npy", np.load(folder / "5.vocals.npy").astype(np.float32))
    lines = [song_line(number) for number in range(20)]
    lines[6]["splitted_lyrics"]["segmented_lyrics"] = []
    lines += ['{"id": "cut', song_line(7), {"genres": "no id"}]
    write_lines(workspace, lines)
    spec = write_spec(workspace, sources={"cot": SOURCES["cot"], "mix": SOURCES["mix"]})
    summary = build_corpus(spec, workspace / "corpus", processes=1)
    broken_lines = {"line 21": "not_json", "song-007": "duplicate_id", "line 23": "missing_id"}
    assert rules(workspace / "corpus", "mix") == broken_lines
    assert rules(workspace / "corpus", "cot") == broken_lines | {
        "song-000": "codes_missing",
        "song-001": "codes_range",
        "song-002": "codes_unreadable",
        "song-003": "length_difference",
        "song-005": "codes_type",
        "song-006": "no_segments",
    }
    assert (summary["cot"]["songs_used"], summary["cot"]["songs_rejected"], summary["cot"]["documents"]) == (14, 9, 14)
    details = {reject.id: reject.detail for reject in read_rejects(workspace / "corpus" / "rejects.parquet")}
    assert "have 989 and 1000 frames" in details["song-003"]
    assert "0.vocals.npy does not exist" in details["song-000"]


def test_a_source_without_a_document_is_an_error_that_says_why(workspace):
    for number in range(20):
        (workspace / "songs" / f"{number}.mix.npy").unlink()
    with pytest.raises(
        InputError, match="sources.mix: yields no document, all 20 songs .* 20 by codes_missing"
    ) as raised:
        build_corpus(workspace / "spec.yaml", workspace / "corpus", processes=1)
    assert "\n" not in str(raised.value)
    assert not (workspace / "corpus" / "mix.json").exists()
    assert set(rules(workspace / "corpus", "mix").values()) == {"codes_missing"}


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"sourcs": {}}, "spec.yaml: sourcs: unknown field; did you mean sources"),
        ({"sources": {}}, "spec.yaml: sources"),
        ({"vocabulary": "none.yaml"}, "none.yaml: no such file"),
        ({"tokenizer": "none.model"}, "none.model: no such file"),
        ({"codec": "opus"}, "has no codec opus"),
        ({"sources": {"a": {"manifest": "none.jsonl", "task": "lyrics_to_song"}}}, "none.jsonl: no such file"),
        ({"sources": {"a": {"manifest": "songs/manifest.jsonl", "task": "lyrics"}}}, "sources.a.task: .*not a task"),
        ({"sources": {"a": {"manifest": "songs/manifest.jsonl"}}}, "sources.a: task: missing field"),
        ({"sources": {"a": SOURCES["cot"] | {"min_segmnt_s": 1}}}, "sources.a: min_segmnt_s: unknown field"),
        ({"sources": {"a": SOURCES["cot"] | {"split": "test"}}}, "sources.a: split"),
        ({"sources": {"../a": SOURCES["cot"]}}, "can't name files"),
        ({"sources": {"a": SOURCES["residual"] | {"codebooks": 9}}}, "sources.a: codebooks"),
    ],
)
def test_bad_specs_are_one_line_errors_before_any_work(workspace, changes, words):
    with pytest.raises(InputError, match=words) as raised:
        build_corpus(write_spec(workspace, **changes), workspace / "corpus", processes=1)
    assert "\n" not in str(raised.value)
    assert not (workspace / "corpus").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_options_that_do_not_fit_the_codec_are_told_with_their_source(workspace, repository, processes):
    changes = {"vocabulary": str(repository / "tokenizers" / "yue.yaml"), "codec": "mert"}
    spec = write_spec(workspace, sources={"residual": SOURCES["residual"]}, **changes)
    with pytest.raises(InputError, match="sources.residual: codebooks: mert has 1"):
        build_corpus(spec, workspace / "corpus", processes=processes)


def test_two_codecs_can_not_share_a_corpus(workspace):
    shutil.copytree(workspace / "songs", workspace / "others")
    (workspace / "others" / "codec" / "codec.json").write_text('{"other": 1}')
    sources = SOURCES | {"other": SOURCES["cot"] | {"manifest": "others/manifest.jsonl"}}
    with pytest.raises(InputError, match="sources.other: .*is another codec"):
        build_corpus(write_spec(workspace, sources=sources), workspace / "corpus", processes=1)


def test_a_folder_keeps_to_one_vocabulary_and_codec(workspace):
    build_corpus(workspace / "spec.yaml", workspace / "corpus", processes=1)
    (workspace / "songs" / "codec" / "codec.json").write_text('{"fitted": "again"}')
    rebuilt = build_corpus(workspace / "spec.yaml", workspace / "corpus", processes=1)
    assert len({about["codec"]["fingerprint"] for about in rebuilt.values()}) == 1
    (workspace / "songs" / "codec" / "codec.json").write_text('{"fitted": "once more"}')
    only = write_spec(workspace, sources={"cot": SOURCES["cot"]})
    with pytest.raises(InputError, match="icl.json: was built with another codec"):
        build_corpus(only, workspace / "corpus", processes=1)


def test_documents_and_corpora_in_words(workspace):
    build_corpus(workspace / "spec.yaml", workspace / "corpus", processes=1)
    words = inspect_source(workspace / "corpus" / "cot", 2)
    assert "[verse]\nla la" in words and words.endswith("<EOD>") and "[!" not in words
    assert words.count("<SOA><embedded>[vocal+accompaniment 10.0 s]<EOA>") == 2
    words = inspect_source(workspace / "corpus" / "residual")
    assert words.count("<SOA><stage_1>[mix 6.0 s]<stage_2>[mix, codebooks 1-7 6.0 s]<EOA>") == 3
    with pytest.raises(InputError, match="has no document 20; name 0 to 19"):
        inspect_source(workspace / "corpus" / "cot", 20)
    first, *lines = corpus_table(workspace / "corpus").splitlines()
    assert first.split()[:7] == ["source", "task", "split", "songs", "rejected", "documents", "tokens"]
    assert [line.split()[0] for line in lines] == sorted(SOURCES)
    with pytest.raises(InputError, match="holds no source"):
        corpus_table(workspace / "songs")


def test_problems_in_a_document_are_marked(prepared):
    vocabulary = Vocabulary.load(prepared / "vocabulary.yaml")
    tokenizer = TextTokenizer(prepared / "tokenizer.model", vocabulary)
    soa, first = vocabulary.special("<SOA>"), vocabulary.codec().first
    ids = np.array([soa, first, first + 256, first + 1, 9999], np.int32)
    kinds = np.array([Kind.SPECIAL, Kind.VOCAL, Kind.ACCOMPANIMENT, Kind.VOCAL, Kind.TEXT], np.uint8)
    words = document_in_words(ids[:4], kinds[:4], vocabulary, tokenizer)
    assert "[! unequal lengths: 2 vocal, 1 accompaniment]" in words
    assert "[! 1 ids that are no accompaniment code of codebook 0]" in words
    assert "[! no <EOD> at the end]" in words and "[! 1 <SOA> but 0 <EOA>]" in words

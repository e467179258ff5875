"""Filters, near-duplicates and the held-out split of a build."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from building import FRAMES, SOURCES, add_copies, contents, rules, song_line, write_copy, write_lines, write_spec

from megatron_music.corpus.build import build_corpus
from megatron_music.corpus.contents import read_contents
from megatron_music.corpus.opt_out import OptOut
from megatron_music.corpus.spec import HeldOut
from megatron_music.errors import InputError
from megatron_music.songs.rejects import read_rejects

NEAR = {"similarity": 0.2}
TRAIN_AND_TEST = {"train": SOURCES["cot"], "test": SOURCES["cot"] | {"split": "held_out"}}


def ngrams(folder: Path, number: int) -> set[tuple[int, ...]]:
    codes = np.load(folder / f"{number}.mix.npy")[0].tolist()
    collapsed = [code for at, code in enumerate(codes) if at == 0 or code != codes[at - 1]]
    return set(zip(collapsed, collapsed[1:], collapsed[2:], strict=False))


def used(corpus: Path, source: str) -> list[str]:
    return read_contents(corpus / source, ["id"]).column("id").to_pylist()


def table(corpus: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(corpus / "near_duplicates.parquet").to_pylist()
    return {row["id"]: (row["rule"], row["kept_id"]) for row in rows}


@pytest.fixture
def with_copies(workspace) -> Path:
    add_copies(workspace)
    return workspace


def test_a_song_is_kept_once_and_its_copies_name_it(with_copies, capsys):
    spec = write_spec(with_copies, near_duplicates=NEAR)
    summary = build_corpus(spec, with_copies / "corpus", processes=1)
    told = (
        "near-duplicates: 4 of 25 songs compared are left out; the other 0 lines have no use, or too few codes of the"
    )
    assert capsys.readouterr().err == f"{told} mix\n"
    left_out = {"song-020": "song-003", "song-021": "song-003", "song-022": "song-007", "song-023": "song-011"}
    assert table(with_copies / "corpus") == {id: ("near_duplicate", kept) for id, kept in left_out.items()}
    for source in SOURCES:
        rejects = [r for r in read_rejects(with_copies / "corpus" / "rejects.parquet") if r.where.startswith(source)]
        assert {(reject.id, reject.rule, reject.value) for reject in rejects} == {
            (id, "near_duplicate", kept) for id, kept in left_out.items()
        }
        assert (summary[source]["songs_used"], summary[source]["songs_rejected"]) == (21, 4)
    assert used(with_copies / "corpus", "cot") == [f"song-{number:03d}" for number in [*range(20), 24]]
    similarities = pq.read_table(with_copies / "corpus" / "near_duplicates.parquet").column("similarity").to_pylist()
    folder = with_copies / "songs"
    for measured, (id, kept) in zip(similarities, left_out.items(), strict=True):
        first, second = ngrams(folder, int(id[-3:])), ngrams(folder, int(kept[-3:]))
        exact = len(first & second) / len(first | second)
        assert abs(measured - exact) <= 4 * np.sqrt(exact * (1 - exact) / 512)


def test_no_near_pair_stands_in_the_corpus_or_across_its_splits(workspace):
    """Fifty songs in families of copies, any of which may be held out: what is used has no near pair left, exactly."""
    folder, random = workspace / "songs", np.random.default_rng(0)
    lines = [song_line(number) for number in range(20)]
    for number in range(20, 50):
        of, damage = int(random.integers(0, 20)), float(random.choice([0.0, 0.05, 0.1, 0.6, 0.8]))
        lines.append(write_copy(folder, number, of, damage))
    write_lines(workspace, lines)
    near = {"sources": TRAIN_AND_TEST, "held_out_share": 0.3, "near_duplicates": NEAR}
    build_corpus(write_spec(workspace, **near), workspace / "corpus", processes=1)
    sets = {f"song-{number:03d}": ngrams(folder, number) for number in range(50)}

    def near_pairs(ids: list[str]) -> set[tuple[str, str]]:
        similar = lambda a, b: len(sets[a] & sets[b]) / len(sets[a] | sets[b])  # noqa: E731
        return {(a, b) for a, b in combinations(ids, 2) if similar(a, b) >= NEAR["similarity"]}

    train, test = used(workspace / "corpus", "train"), used(workspace / "corpus", "test")
    assert not set(train) & set(test) and near_pairs(train + test) == set()
    held_out = HeldOut((), 0.3, 0)
    assert {held_out.split(id) for id in train} == {"train"} and {held_out.split(id) for id in test} == {"held_out"}
    found = table(workspace / "corpus")
    crossing = {id for id, (rule, _) in found.items() if rule == "near_held_out"}
    assert crossing and all(kept in test for rule, kept in found.values() if rule == "near_held_out")
    # Whoever is left out is near the one that is kept, and whoever is near nobody is kept.
    assert {tuple(sorted((id, kept))) for id, (_, kept) in found.items()} <= near_pairs(sorted(sets))
    assert set(train) | set(test) | set(found) == set(sets)
    # Without the stage the same split has near pairs across it: the test would see them.
    plain = write_spec(workspace, sources=TRAIN_AND_TEST, held_out_share=0.3)
    build_corpus(plain, workspace / "plain", processes=1)
    train, test = used(workspace / "plain", "train"), used(workspace / "plain", "test")
    assert near_pairs(train + test) - near_pairs(train) - near_pairs(test)


def test_a_training_song_near_a_held_out_one_is_left_out_wherever_it_stands(with_copies):
    spec = write_spec(with_copies, held_out=["song-021"], near_duplicates=NEAR, sources=TRAIN_AND_TEST)
    build_corpus(spec, with_copies / "corpus", processes=1)
    assert used(with_copies / "corpus", "test") == ["song-021"]
    assert rules(with_copies / "corpus", "train") == {
        "song-003": "near_held_out",
        "song-020": "near_held_out",
        "song-022": "near_duplicate",
        "song-023": "near_duplicate",
    }


def test_songs_of_one_id_in_two_manifests_are_one_song(with_copies):
    folder = with_copies / "songs"
    (folder / "best.jsonl").write_text("".join(json.dumps(song_line(number)) + "\n" for number in (3, 20, 5)))
    best = SOURCES["cot"] | {"manifest": "songs/best.jsonl"}
    sources = {"all": SOURCES["cot"], "best": best, "test": best | {"split": "held_out"}}
    spec = write_spec(with_copies, near_duplicates=NEAR, sources=sources, held_out=["song-005"])
    build_corpus(spec, with_copies / "corpus", processes=1)
    assert used(with_copies / "corpus", "best") == ["song-003"] and used(with_copies / "corpus", "test") == ["song-005"]
    assert "song-003" in used(with_copies / "corpus", "all") and "song-005" not in used(with_copies / "corpus", "all")


def test_a_field_can_choose_which_song_is_kept(with_copies):
    lines = [song_line(number) for number in range(25)]
    for number, quality in ((3, 1.5), (20, 2), (21, 2.5), (7, None), (22, float("nan")), (23, True), (11, 10**400)):
        lines[number]["quality"] = quality
    write_lines(with_copies, lines)
    spec = write_spec(with_copies, near_duplicates=NEAR | {"prefer": "quality"})
    build_corpus(spec, with_copies / "corpus", processes=1)
    assert {id: kept for id, (_, kept) in table(with_copies / "corpus").items()} == {
        "song-003": "song-021",
        "song-020": "song-021",
        "song-022": "song-007",
        "song-023": "song-011",
    }


def test_a_song_that_no_source_takes_is_not_kept_in_anothers_place(with_copies):
    lines = [song_line(number) for number in range(25)]
    lines[3]["genres"] = lines[7]["genres"] = "spoken word"
    write_lines(with_copies, lines)
    filtered = SOURCES["cot"] | {"filters": {"forbidden_tags": ["spoken word"]}}
    spec = write_spec(with_copies, near_duplicates=NEAR, sources={"cot": filtered})
    build_corpus(spec, with_copies / "corpus", processes=1)
    assert rules(with_copies / "corpus", "cot") == {
        "song-003": "forbidden_tags",
        "song-007": "forbidden_tags",
        "song-021": "near_duplicate",
        "song-023": "near_duplicate",
    }
    assert table(with_copies / "corpus")["song-021"] == ("near_duplicate", "song-020")


def test_filters_are_options_of_their_source(workspace):
    lines = [song_line(number) for number in range(20)]
    lines[4]["audio_length_in_sec"] = 20.2
    lines[5]["language"] = "de"
    lines[6]["snr"] = 3
    np.save(workspace / "songs" / "7.vocals.npy", np.full((8, FRAMES), 9, np.int16))
    write_lines(workspace, lines)
    filters = {
        "max_duration_s": 20.1,
        "languages": ["en"],
        "unknown_language": "keep",
        "fields": {"snr": {"min": 5, "missing": "keep"}},
        "max_held_share": {"vocals": 0.5},
    }
    sources = {"all": SOURCES["cot"], "good": SOURCES["cot"] | {"filters": filters}}
    summary = build_corpus(write_spec(workspace, sources=sources), workspace / "corpus", processes=1)
    assert rules(workspace / "corpus", "all") == {} and summary["all"]["filters"] == {}
    rejects = read_rejects(workspace / "corpus" / "rejects.parquet")
    assert [(reject.id, reject.rule, reject.value) for reject in rejects] == [
        ("song-004", "max_duration_s", "20.2"),
        ("song-005", "languages", "de"),
        ("song-006", "fields.snr", "3"),
        ("song-007", "max_held_share", "1.000"),
    ]
    assert used(workspace / "corpus", "good") == [f"song-{number:03d}" for number in range(20) if not 4 <= number < 8]
    filters["max_duration_s"] = 30
    again = build_corpus(write_spec(workspace, sources=sources), workspace / "corpus", processes=1)
    assert (again["good"]["songs_used"], again["all"]["fingerprint"]) == (17, summary["all"]["fingerprint"])
    assert again["good"]["filters"] == filters


def test_the_share_held_out_is_a_function_of_the_id():
    ids = [f"song-{number}" for number in range(20_000)]
    one, three = HeldOut((), 0.01, 0), HeldOut((), 0.03, 0)
    out = {id for id in ids if one.split(id) == "held_out"}
    assert abs(len(out) - 200) < 4 * np.sqrt(200)
    assert out < {id for id in ids if three.split(id) == "held_out"}  # a larger share takes nothing back
    assert sorted(out)[:3] == KNOWN_HELD_OUT
    assert out != {id for id in ids if HeldOut((), 0.01, 1).split(id) == "held_out"}
    assert HeldOut(("song-1",), 0.01, 0).split("song-1") == "held_out"
    assert HeldOut((), 0.999, 0).split("") == "train" and HeldOut((), 0.0, 0).split("song-1") == "train"


KNOWN_HELD_OUT = ["song-10173", "song-10262", "song-10305"]


def test_finished_work_is_kept_until_codes_change(with_copies):
    spec, corpus = write_spec(with_copies, near_duplicates=NEAR), with_copies / "corpus"
    build_corpus(spec, corpus, processes=1)
    before = {name: (corpus / name).stat().st_mtime_ns for name in ("near_duplicates.parquet", "cot.bin")}
    build_corpus(spec, corpus, processes=1)
    assert before == {name: (corpus / name).stat().st_mtime_ns for name in before}
    write_copy(with_copies / "songs", 24, of=12)
    build_corpus(spec, corpus, processes=1)
    assert table(corpus)["song-024"] == ("near_duplicate", "song-012") and "song-024" not in used(corpus, "cot")
    build_corpus(write_spec(with_copies), corpus, processes=1)
    assert not (corpus / "near_duplicates.parquet").exists() and len(used(corpus, "cot")) == 25


def test_any_number_of_processes_leaves_the_same_songs_out(with_copies):
    spec = write_spec(with_copies, near_duplicates=NEAR, sources={"cot": SOURCES["cot"]})
    build_corpus(spec, with_copies / "one", processes=1)
    build_corpus(spec, with_copies / "two", processes=2)
    assert contents(with_copies / "one") == contents(with_copies / "two")


def test_songs_that_can_not_be_compared_are_kept(with_copies):
    folder = with_copies / "songs"
    for number in (0, 1):  # two silent songs have nothing in common but silence
        np.save(folder / f"{number}.mix.npy", np.zeros((8, FRAMES), np.int16))
    (folder / "2.mix.npy").write_bytes(b"damaged")
    spec = write_spec(with_copies, near_duplicates=NEAR, sources={"cot": SOURCES["cot"]})
    build_corpus(spec, with_copies / "corpus", processes=1)
    assert used(with_copies / "corpus", "cot") == [f"song-{number:03d}" for number in [*range(20), 24]]


@pytest.mark.parametrize(
    "near,words",
    [
        ({"similarty": 0.3}, "spec.yaml: near_duplicates.similarty: unknown field; did you mean similarity"),
        ({"similarity": 0}, "near_duplicates.similarity"),
        ({"track": "drums"}, "near_duplicates.track"),
    ],
)
def test_wrong_options_are_told_before_any_work(workspace, near, words):
    with pytest.raises(InputError, match=words):
        build_corpus(write_spec(workspace, near_duplicates=near), workspace / "corpus", processes=1)
    assert not (workspace / "corpus").exists()


def test_a_wrong_filter_is_told_with_its_source(workspace):
    sources = {"cot": SOURCES["cot"] | {"filters": {"min_duration": 3}}}
    words = "spec.yaml: sources.cot: filters.min_duration: unknown field; did you mean min_duration_s"
    with pytest.raises(InputError, match=words):
        build_corpus(write_spec(workspace, sources=sources), workspace / "corpus", processes=1)


def test_a_threshold_that_takes_unrelated_songs_is_refused(workspace):
    folder, random = workspace / "songs", np.random.default_rng(0)
    for number in range(60):
        for track in ("mix", "vocals", "accompaniment"):
            np.save(folder / f"{number}.{track}.npy", random.integers(0, 8, (8, FRAMES)).astype(np.int16))
    write_lines(workspace, [song_line(number) for number in range(60)])
    with pytest.raises(InputError, match="near_duplicates.similarity: half of all pairs .* raise it"):
        build_corpus(write_spec(workspace, near_duplicates=NEAR), workspace / "corpus", processes=1)
    spec = write_spec(workspace, near_duplicates=NEAR | {"ngram": 6}, sources={"cot": SOURCES["cot"]})
    assert build_corpus(spec, workspace / "corpus", processes=1)["cot"]["songs_used"] == 60


def test_a_track_that_no_song_has_is_an_error(workspace):
    lines = [song_line(number) for number in range(20)]
    write_lines(workspace, [{name: value for name, value in line.items() if name != "codec"} for line in lines])
    spec = write_spec(workspace, near_duplicates=NEAR, sources={"cot": SOURCES["cot"]})
    with pytest.raises(InputError, match="near_duplicates.track: no song has codes of its mix to compare"):
        build_corpus(spec, workspace / "corpus", processes=1)


def test_the_upload_that_more_sources_can_use_is_kept(with_copies):
    lines = [song_line(number) for number in range(25)]
    lines[3]["splitted_lyrics"] = {}  # of the three uploads of one song, the first has no lyrics
    lines[7]["audio_length_in_sec"] = 19  # and here no source can use the first
    write_lines(with_copies, lines)
    sources = {name: SOURCES[name] for name in ("cot", "mix")}
    spec = write_spec(with_copies, near_duplicates=NEAR, sources=sources)
    build_corpus(spec, with_copies / "corpus", processes=1)
    assert {id: kept for id, (_, kept) in table(with_copies / "corpus").items()} == {
        "song-003": "song-020",
        "song-021": "song-020",
        "song-023": "song-011",
    }
    assert "song-022" in used(with_copies / "corpus", "cot") and rules(with_copies / "corpus", "cot")["song-007"] == (
        "code_rate"
    )


def test_songs_that_opted_out_are_in_no_source_and_neither_are_their_copies(with_copies):
    (with_copies / "opt_out.txt").write_text("# by letter\n\nsong-003\nsong-01[01]\nsomebody-else/*\n")
    spec = write_spec(
        with_copies, near_duplicates=NEAR, opt_out="opt_out.txt", held_out=["song-010"], sources=TRAIN_AND_TEST
    )
    with pytest.raises(InputError, match="1 by opted_out"):
        build_corpus(spec, with_copies / "corpus", processes=1)
    spec = write_spec(with_copies, near_duplicates=NEAR, opt_out="opt_out.txt")
    build_corpus(spec, with_copies / "corpus", processes=1)
    # Copies of song-003, song-007 and song-011 are 20 and 21, 22, and 23.
    assert used(with_copies / "corpus", "cot") == [
        f"song-{number:03d}" for number in range(25) if number not in {3, 10, 11, 20, 21, 22, 23}
    ]
    rejects = {
        reject.id: (reject.rule, reject.value)
        for reject in read_rejects(with_copies / "corpus" / "rejects.parquet")
        if reject.where.startswith("cot")
    }
    assert rejects == {
        "song-003": ("opted_out", "song-003"),
        "song-010": ("opted_out", "song-01[01]"),
        "song-011": ("opted_out", "song-01[01]"),
        "song-020": ("near_opted_out", "song-003"),
        "song-021": ("near_opted_out", "song-003"),
        "song-022": ("near_duplicate", "song-007"),
        "song-023": ("near_opted_out", "song-011"),
    }


@pytest.mark.parametrize(
    ("line", "id"),
    [
        ("Song [live]", "Song [live]"),
        ("#1 hit", "#1 hit"),
        ("a/b #2", "a/b #2"),
        ("Caf\u00e9", "Cafe\u0301"),
        ("Cafe\u0301/*", "Caf\u00e9/1"),
        ("a\u2028b", "a\u2028b"),
        ("\ufefffirst\r", "first"),
    ],
)
def test_ids_that_look_like_something_else_are_named_as_they_stand(tmp_path, line, id):
    (tmp_path / "opt_out.txt").write_bytes(f"{line}\n# by letter *\n".encode())
    opt_out = OptOut.read(tmp_path / "opt_out.txt")
    assert opt_out.line_for(id) and not opt_out.line_for("another") and not opt_out.line_for("# by letter 2")
    assert line[0] == "\ufeff" or HeldOut((line,), 0.0, 0).split(id) == "held_out"


def test_a_longer_opt_out_list_builds_only_sources_again_that_hold_its_songs(workspace):
    (workspace / "opt_out.txt").write_text("nobody\n")
    spec = write_spec(workspace, opt_out="opt_out.txt", sources={"cot": SOURCES["cot"]})
    build_corpus(spec, workspace / "corpus", processes=1)
    before = (workspace / "corpus" / "cot.bin").stat().st_mtime_ns
    (workspace / "opt_out.txt").write_text("nobody\nnobody-else\n")
    build_corpus(spec, workspace / "corpus", processes=1)
    assert (workspace / "corpus" / "cot.bin").stat().st_mtime_ns == before
    (workspace / "opt_out.txt").write_text("nobody\nsong-004\n")
    build_corpus(spec, workspace / "corpus", processes=1)
    assert used(workspace / "corpus", "cot") == [f"song-{number:03d}" for number in range(20) if number != 4]
    (workspace / "opt_out.txt").unlink()
    with pytest.raises(InputError, match="opt_out.txt: no such file"):
        build_corpus(spec, workspace / "corpus", processes=1)

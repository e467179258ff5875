"""Fingerprints against their definition, and the file of an index: whole, its own, or refused."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from planted_copies import SMALL, XCODEC, random_songs, write_songs

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.corpus.workplace import workplace
from megatron_music.errors import InputError
from megatron_music.evaluation.memorisation import index as module
from megatron_music.evaluation.memorisation.fingerprints import GRAM, GUARANTEE, WINDOW, gram_hashes, kept_grams
from megatron_music.evaluation.memorisation.index import CopyIndex, build_index, open_index


@pytest.mark.parametrize("codes", [2, 3, 16, 1024])
def test_of_every_window_of_groups_a_least_one_is_kept_and_nothing_else(codes):
    rng = np.random.default_rng(codes)
    sequence = np.repeat(rng.integers(0, codes, 300), rng.integers(1, 4, 300)).astype(np.int16)
    sequence[[100, 101, 300]] = -1
    hashes = gram_hashes(sequence)
    groups = [sequence[at : at + GRAM] for at in range(len(hashes))]
    plain = np.array([(group >= 0).all() and len(set(group.tolist())) > 1 for group in groups])
    assert (hashes[~plain] == 2**64 - 1).all()
    distinct = {group.tobytes() for group, usable in zip(groups, plain, strict=True) if usable}
    assert len(np.unique(hashes[plain])) == len(distinct)
    wanted = set()
    for at in range(-WINDOW + 1, len(hashes)):
        window = [place for place in range(max(0, at), min(len(hashes), at + WINDOW)) if plain[place]]
        least = min((hashes[place] for place in window), default=None)
        wanted |= {place for place in window if hashes[place] == least}
    kept, of_kept = kept_grams(sequence)
    assert kept.tolist() == sorted(wanted)
    assert (of_kept == hashes[kept]).all()


def test_two_of_seven_groups_of_random_codes_are_kept():
    kept, _ = kept_grams(np.random.default_rng(0).integers(0, 1024, 100_000).astype(np.int16))
    assert len(kept) / 100_000 == pytest.approx(2 / (WINDOW + 1), rel=0.01)


@pytest.mark.parametrize("chunk", [7, 1 << 19])
def test_an_index_holds_all_tracks_and_finds_every_run_of_the_guaranteed_length(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK_TOKENS", chunk)
    songs = random_songs(5, 60, XCODEC) + random_songs(3, 4, XCODEC)
    index = open_index([write_songs(tmp_path / "songs", songs, XCODEC)], XCODEC)
    assert index.path == tmp_path / "songs.copies" and len(index) == 5 * 120 + 3 * 8
    tracks = [track for song in songs for track in song]
    assert index.codes.tolist() == [-1] + [code for track in tracks for code in [*track.tolist(), -1]]
    for number, track in enumerate(tracks):
        for at in range(len(track) - GUARANTEE + 1):
            seeds = index.seeds(track[at : at + GUARANTEE])
            assert len(seeds.sample_S)
            place = index.place(int(seeds.corpus_S[0] - seeds.sample_S[0]))
            assert (place.document, place.first_frame) == (number // 2, at)
            assert place.kind == ("vocal", "accompaniment")[number % 2] and place.source == "songs"
    assert not len(index.seeds(np.random.default_rng(9).integers(0, 1024, 500)).sample_S)


def test_several_sources_stand_in_one_index(tmp_path):
    first, second = random_songs(2, 50, SMALL), random_songs(2, 50, SMALL, seed=1)
    prefixes = [write_songs(tmp_path / name, songs, SMALL) for name, songs in (("a", first), ("b", second))]
    index = open_index(prefixes, SMALL, tmp_path / "both")
    place = index.place(index.seeds(second[1][0]).corpus_S.max())
    assert (len(index), place.source, place.document) == (400, "b", 1)


def test_a_group_that_stands_at_too_many_places_is_looked_at_in_some(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_PLACES", 10)
    song = np.tile(np.arange(6), (2, 50))
    index = open_index([write_songs(tmp_path / "songs", [song], SMALL)], SMALL)
    seeds = index.seeds(np.tile(np.arange(6), 3))
    assert seeds.cut > 0 and np.bincount(seeds.sample_S).max() == 10


def test_codes_of_another_codec_and_texts_alone(tmp_path):
    with pytest.raises(InputError, match="document 0: ids from .* are not all codes of xcodec"):
        open_index([write_songs(tmp_path / "songs", random_songs(1, 9, SMALL), SMALL)], XCODEC)
    assert not list(tmp_path.glob("*copies*"))
    index = open_index([write_songs(tmp_path / "text", [np.zeros((2, 0), int)], SMALL)], SMALL)
    assert len(index) == 0 and not len(index.seeds(np.arange(16)).sample_S)


def test_an_index_of_another_source_and_a_damaged_one_are_refused_in_one_line(tmp_path):
    songs = write_songs(tmp_path / "songs", random_songs(3, 50, SMALL), SMALL)
    other = write_songs(tmp_path / "other", random_songs(3, 50, SMALL, seed=1), SMALL)
    path = open_index([songs], SMALL).path
    with pytest.raises(InputError, match="is the index of songs as it was then, not of .*other as it is; name another"):
        open_index([other], SMALL, path)
    whole = path.read_bytes()
    for content, told in (
        (whole[:-8], "has .* bytes where its header announces"),
        (whole[:100], "is no index of a training corpus"),
        (b"", "is no index of a training corpus"),
        (b"[1]" + bytes(5000), "is no index of a training corpus"),
        (whole.replace(b'"version": 1', b'"version": 2'), "another version"),
        (whole[:-3000] + bytes([whole[-3000] ^ 1]) + whole[-2999:], "is damaged"),
        (whole.replace(b'"entries": ', b'"entries":-'), "has a damaged header"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=told) as refused:
            open_index([songs], SMALL)
        assert "\n" not in str(refused.value)
    path.unlink()
    open_index([songs], SMALL)
    assert path.read_bytes() == whole


def test_a_source_that_was_built_anew_asks_for_a_new_index(tmp_path):
    songs = write_songs(tmp_path / "songs", random_songs(3, 50, SMALL), SMALL)
    open_index([songs], SMALL)
    write_songs(tmp_path / "songs", random_songs(3, 50, SMALL, seed=1), SMALL)
    with pytest.raises(InputError, match="delete it, and it is built again"):
        open_index([songs], SMALL)


def test_sources_that_are_too_many_are_told_before_any_is_read(tmp_path, monkeypatch):
    """Too many for a byte, and too many names for the header."""
    monkeypatch.setattr(module, "_write_codes", lambda *_: 1 / 0)
    songs = write_songs(tmp_path / "songs", random_songs(1, 20, SMALL), SMALL)
    for count in (256, 80):
        with pytest.raises(InputError, match=f"songs.copies: can't hold {count} sources; name fewer"):
            open_index([songs] * count, SMALL)
    assert not list(tmp_path.glob("*copies*"))


def test_two_builds_of_one_index_do_not_meet(tmp_path):
    songs = write_songs(tmp_path / "songs", random_songs(1, 20, SMALL), SMALL)
    with workplace(tmp_path / ".songs.copies.building"):
        with pytest.raises(InputError, match="another run is filling this folder; wait for it"):
            open_index([songs], SMALL)
    assert len(open_index([songs], SMALL)) == 40


_KILLED = """
import os, signal, sys
from megatron_music.evaluation.memorisation import index
from megatron_music.vocabulary.vocabulary import CodecRange
def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
index._write_entries = killed
index.open_index([sys.argv[1]], CodecRange("embedded", "<embedded>", 306, 4, 16))
"""


def test_a_killed_build_leaves_no_index_and_starts_again(tmp_path):
    songs = write_songs(tmp_path / "songs", random_songs(3, 50, SMALL), SMALL)
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(songs)], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert ".songs.copies.building" in left and "songs.copies" not in left
    index = open_index([songs], SMALL)
    assert len(index) == 300
    assert {path.name for path in tmp_path.iterdir()} == left - {".songs.copies.building"} | {"songs.copies"}
    build_index([IndexedSource(songs)], SMALL, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == index.path.read_bytes()
    header = json.loads((tmp_path / "again").read_bytes()[:4096].rstrip(b"\0"))
    assert header["tokens"] == 307 and CopyIndex(tmp_path / "again").sources[0]["name"] == "songs"

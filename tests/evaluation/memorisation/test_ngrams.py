"""n-gram overlap against sets of tuples."""

import numpy as np
import pytest
from planted_copies import SMALL, random_songs, write_songs

from megatron_music.evaluation.memorisation import ngrams
from megatron_music.evaluation.memorisation.index import open_index
from megatron_music.evaluation.memorisation.ngrams import ngram_overlap


@pytest.mark.parametrize("chunk", [5, 1 << 16])
def test_shares_are_those_of_sets(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(ngrams, "_CHUNK_TOKENS", chunk)
    songs = random_songs(6, 100, SMALL)
    index = open_index([write_songs(tmp_path / "songs", songs, SMALL)], SMALL)
    rng = np.random.default_rng(3)
    samples = {"samples": [rng.integers(0, 16, length).astype(np.int16) for length in (1, 2, 7, 90, 200)]}
    samples["samples"][3][20:60] = songs[2][1][50:90]
    samples["held_out"] = [rng.integers(0, 16, 5).astype(np.int16)]
    found = ngram_overlap(index.codes, samples)
    for name, group in samples.items():
        for n in range(2, 9):
            known = {tuple(track[at : at + n]) for song in songs for track in song for at in range(100 - n + 1)}
            own = [tuple(codes[at : at + n]) for codes in group for at in range(len(codes) - n + 1)]
            if own:
                assert found[name][n] == pytest.approx(sum(one in known for one in own) / len(own))
    assert set(found["samples"]) == set(range(2, 9)) and set(found["held_out"]) == {2, 3, 4, 5}
    assert found["samples"][8] == pytest.approx(33 / (83 + 193), abs=0.01)


def test_no_samples_and_no_corpus(tmp_path):
    index = open_index([write_songs(tmp_path / "songs", [np.zeros((2, 0), int)], SMALL)], SMALL)
    codes = [np.arange(4, dtype=np.int16)]
    assert ngram_overlap(index.codes, {"a": codes, "b": []}) == {"a": {2: 0.0, 3: 0.0, 4: 0.0}, "b": {}}

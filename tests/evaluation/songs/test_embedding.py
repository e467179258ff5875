"""Distances against scipy and known Gaussians; tiny networks of random weights, saved and loaded as real ones are."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import soundfile
import torch
from audio_networks import write_clap, write_classifier
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from megatron_music.errors import InputError
from megatron_music.evaluation.songs.embedding import AudioNetwork, frechet_distance, kl_divergence
from megatron_music.evaluation.songs.inputs import songs_in
from megatron_music.evaluation.songs.networks import Named, Networks
from megatron_music.evaluation.songs.song import Found


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    return write_clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """21.5 s of stereo noise: two windows, and a piece of more than a second."""
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (21 * 16_000 + 8_000, 2)), 16_000)
    return path


@pytest.mark.parametrize(("first", "second"), [(60, 90), (5, 4)])
def test_the_frechet_distance_is_scipys(first, second):
    """With more windows than dimensions, and with fewer, where the covariances are singular."""
    chance = np.random.default_rng(0)
    a = chance.normal(0, 1, (first, 8)) @ chance.normal(0, 1, (8, 8))
    b = chance.normal(0.5, 1, (second, 8)) @ chance.normal(0, 1, (8, 8))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    shift = a.mean(axis=0) - b.mean(axis=0)
    expected = shift @ shift + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    # sqrtm itself is good to half of the digits where the product is singular.
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9 if first > 8 else 1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_known_gaussians():
    """Two points each: mean 0 and variance 2 a dimension against mean 3 and variance 8: 3^2 + (8^0.5 - 2^0.5)^2."""
    assert frechet_distance(np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])) == pytest.approx(9 + 2)
    with pytest.raises(ValueError, match="two windows"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))


def test_the_kl_divergence_is_scipys():
    chance = np.random.default_rng(0)
    reference, other = chance.dirichlet(np.ones(6), 20), chance.dirichlet(2 * np.ones(6), 9)
    expected = scipy.stats.entropy(reference.mean(axis=0), other.mean(axis=0))
    assert kl_divergence(reference, other) == pytest.approx(expected)
    assert kl_divergence(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])) == pytest.approx(np.log(2))


def test_clap_hears_and_reads(clap, audio):
    network = AudioNetwork(clap)
    rows, folk = network.hear(audio), network.read("folk piano")
    assert (network.sample_rate, network.joint, rows.shape, folk.shape) == (48_000, True, (3, 12), (12,))
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1) and np.linalg.norm(folk) == pytest.approx(1)
    assert np.array_equal(network.hear(audio), rows) and not np.allclose(network.read("rock"), folk)


def test_other_models_give_the_mean_of_their_hidden_states(tmp_path, audio):
    torch.manual_seed(0)
    shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, conv_dim=(8, 8))
    shape |= dict(
        conv_stride=(10, 32), conv_kernel=(10, 32), num_conv_pos_embedding_groups=2, num_conv_pos_embeddings=4
    )
    model = Wav2Vec2Model(Wav2Vec2Config(**shape, num_feat_extract_layers=2)).eval()
    model.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    network = AudioNetwork(str(tmp_path))
    rows = network.hear(audio)
    heard, _ = soundfile.read(audio, dtype="float32")
    with torch.inference_mode():
        expected = model(torch.tensor(heard.mean(axis=1)[None, 160_000:320_000])).last_hidden_state.mean(1)[0]
    assert not network.joint and rows.shape == (3, 16)
    assert rows[1] == pytest.approx(expected.double().numpy(), abs=1e-5)


def test_a_classifier_gives_probabilities_of_short_files_too(tmp_path, audio):
    network = AudioNetwork(write_classifier(tmp_path / "model"), classify=True)
    rows = network.hear(audio)
    assert rows.shape == (3, 5) and rows.sum(axis=1) == pytest.approx(1) and rows.min() > 0
    soundfile.write(tmp_path / "short.wav", np.array([0.1, -0.1]), 16_000)
    assert network.hear(tmp_path / "short.wav").shape == (1, 5)


def test_models_that_can_not_be_had_are_told(clap, tmp_path):
    with pytest.raises(InputError, match="no such file or folder; .* such as laion/larger_clap_music"):
        AudioNetwork(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="can't be loaded as an audio classifier"):
        AudioNetwork(clap, classify=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="names no model_type"):
        AudioNetwork(str(tmp_path))


def test_what_was_heard_is_kept_until_the_song_or_the_program_changes(tmp_path, clap, monkeypatch):
    (tmp_path / "songs").mkdir()
    soundfile.write(tmp_path / "songs" / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    (tmp_path / "songs" / "a.tags.txt").write_text("folk")
    store, heard, hear = tmp_path / "store", [], AudioNetwork.hear
    monkeypatch.setattr(AudioNetwork, "hear", lambda self, path: heard.append(path.name) or hear(self, path))
    networks = Networks(Named(embedding=clap), [], store)

    def score():
        found = Found()
        networks.hear_song(songs_in(tmp_path / "songs")[0], found)
        return found.measures["clap_score"], len(heard)

    first, _ = score()
    assert score() == (first, 1)
    (kept,) = store.iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert score() == (first, 2)
    monkeypatch.setattr("megatron_music.evaluation.songs.embedding.__file__", __file__)
    assert score() == score() == (first, 3)
    soundfile.write(tmp_path / "songs" / "a.wav", np.random.default_rng(1).normal(0, 0.1, 16_000), 16_000)
    assert score()[0] != first and len(heard) == 4

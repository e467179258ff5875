"""RMVPE: weights as they are published, and what is computed around and with them, against known answers."""

import hashlib

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from megatron_music.errors import InputError
from megatron_music.evaluation.songs import rmvpe
from megatron_music.evaluation.songs.evaluate import Options, evaluate_songs
from megatron_music.evaluation.songs.networks import Named
from megatron_music.evaluation.songs.rmvpe import Rmvpe, f0_of_salience, load_rmvpe, log_mel
from megatron_music.evaluation.songs.voice import load_librosa

RATE = 16_000
TENSORS, PARAMETERS = 741, 90_423_165
SHAPES_SHA256 = "7293405b79bdbeedec00b72fb44d6a3726e075de5aed07b487df79ae127c9259"
"""Of the weights as the published program names them; its file holds them as float16."""


def published(peak: int = 100) -> dict[str, torch.Tensor]:
    """Tensors of the published shapes: all 0 but for the last bias, which makes one bin's salience almost 1."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Rmvpe().state_dict().items()}
    tensors = {name: torch.zeros((), dtype=torch.float16).expand(shape) for name, shape in shapes.items()}
    bias = torch.full((rmvpe.BINS,), -20.0, dtype=torch.float16)
    bias[peak] = 8.0
    return tensors | {"fc.1.bias": bias}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "rmvpe.pt"
    torch.save(published(), path)
    return path


def small(seed: int = 0) -> Rmvpe:
    """Two levels of one block, with random weights and statistics."""
    torch.manual_seed(seed)
    network = Rmvpe(levels=2, blocks=1, middle_levels=1, width=4, gru_width=8).eval().requires_grad_(False)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5)
    network.fc[1].weight.mul_(20)
    return network


def test_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        network = Rmvpe()
    tensors = network.state_dict()
    assert len(tensors) == TENSORS
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS
    lines = "\n".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == SHAPES_SHA256


def test_weights_load_from_both_kinds_of_files(tmp_path, weights):
    file = tmp_path / "rmvpe.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in published().items()}, file)
    sounds = np.random.default_rng(0).normal(0, 0.1, RATE // 2).astype(np.float32)
    for path in (weights, file):
        network = load_rmvpe(path)
        assert not network.training and network.fc[1].bias.dtype == torch.float32
        f0_hz = network.f0(sounds)
        assert f0_hz == pytest.approx(np.full(50, 10 * 2 ** ((1997.3794084376191 + 2000) / 1200)), rel=1e-6)


def test_bad_weights_are_told_in_one_line(tmp_path, weights):
    content = weights.read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    lacking, reshaped, strange = published(), published(), published()
    del lacking["cnn.weight"]
    reshaped["fc.1.weight"] = torch.zeros(360, 256)
    strange["fc.1.bias"][7] = torch.nan
    torch.save(lacking, tmp_path / "lacking.pt")
    torch.save(reshaped, tmp_path / "reshaped.pt")
    torch.save(published() | {"unet.tf.layers.0.weight": torch.zeros(1)}, tmp_path / "foreign.pt")
    torch.save(strange, tmp_path / "strange.pt")
    for name, message in (
        ("none.pt", "no such file; name RMVPE's weights"),
        ("cut.pt", "can't be read as weights"),
        ("text.safetensors", "can't be read as weights"),
        ("other.pt", "holds other things than tensors"),
        ("list.pt", "holds other things than tensors"),
        ("lacking.pt", "1 of 741 tensors are missing or of another shape, first cnn.weight"),
        ("reshaped.pt", "1 of 741 tensors are missing or of another shape, first fc.1.weight"),
        ("foreign.pt", "is not RMVPE's: it holds 'unet.tf.layers.0.weight'"),
        ("strange.pt", "fc.1.bias holds numbers that are not finite"),
    ):
        with pytest.raises(InputError, match=message) as told:
            load_rmvpe(tmp_path / name)
        assert name in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(InputError, match="--device: teapot can't be used"):
        load_rmvpe(weights, "teapot")


def test_f0_lies_where_the_salience_does():
    salience_TB = np.zeros((6, 360), np.float32)
    salience_TB[0, [100, 101]] = 0.5  # half-way between two bins
    salience_TB[1, [100, 101]] = (0.6, 0.2)  # a quarter of the way
    salience_TB[2, [0, 1]] = (0.4, 0.1)  # at the lower edge,
    salience_TB[3, [358, 359]] = (0.1, 0.4)  # and at the upper
    salience_TB[4, [100, 105]] = (0.5, 0.4)  # the other is too far away to count
    salience_TB[5, 100] = 0.03  # not above the threshold
    bins = np.array([100.5, 100.25, 0.2, 358.8, 100.0, np.nan])
    cents = 1200 * np.log2(f0_of_salience(salience_TB) / 10)
    assert cents == pytest.approx(1997.3794084376191 + 20 * bins, rel=1e-7, nan_ok=True)
    salience_TB[5, 100] = 0.031
    assert np.isfinite(f0_of_salience(salience_TB)[5])
    assert np.isnan(f0_of_salience(np.zeros((1, 360), np.float32))).all()


def test_the_spectrogram_is_librosas():
    time_s = np.arange(RATE) / RATE
    tone = (0.3 * np.sin(2 * np.pi * 330 * time_s) + 0.1 * np.sin(2 * np.pi * 3300 * time_s)).astype(np.float32)
    tone[RATE // 2 :] = 0  # the floor
    spectrogram_MT = load_librosa().feature.melspectrogram(
        y=tone, sr=RATE, n_fft=1024, hop_length=160, power=1, n_mels=128, fmin=30, fmax=8000,
        htk=True, norm="slaney", pad_mode="reflect",
    )  # fmt: skip
    expected_TM = np.log(np.maximum(spectrogram_MT, 1e-5)).T
    found_TM = log_mel(torch.from_numpy(np.pad(tone, 512, mode="reflect"))).numpy()
    assert found_TM.shape == (101, 128) and (found_TM == np.float32(np.log(1e-5))).any()
    # Amplitudes, not logarithms: beside the tone single precision leaves noise not far above the floor.
    assert np.abs(np.exp(found_TM) - np.exp(expected_TM)).max() < 1e-5 * spectrogram_MT.max()


@pytest.mark.parametrize("seconds", [1.5, 0.77])
def test_pieces_equal_the_whole(monkeypatch, seconds):
    network = small()
    samples = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    whole_TB = network.salience(samples)
    assert whole_TB.shape == (round(seconds * 100) + 1, 360) and whole_TB.std(dim=0).max() > 0.05
    monkeypatch.setattr(rmvpe, "PIECE_FRAMES", 12)
    assert torch.allclose(network.salience(samples), whole_TB, rtol=0, atol=1e-5)
    network.margin_frames = 0
    assert not torch.allclose(network.salience(samples), whole_TB, rtol=0, atol=1e-5)


def test_pieces_hear_as_far_as_the_network_does():
    """With positive weights nothing that reaches a frame is lost on the way."""
    network = small().double()
    for tensor in network.state_dict().values():
        tensor.abs_()
    mel_TM = torch.ones(200, 128, dtype=torch.float64)
    before = network._features(mel_TM)
    mel_TM[100] = 1e6
    changed_T = (network._features(mel_TM) != before).any(dim=1).nonzero() - 100
    assert network.margin_frames - network.step_frames < changed_T.abs().max() <= network.margin_frames


def test_f0_has_100_values_a_second():
    network = small()
    for samples, frames in ((0, 0), (1, 1), (160, 1), (161, 2), (RATE, 100)):
        assert len(network.f0(np.full(samples, 0.1, np.float32))) == frames
    assert len(network.f0(np.full(44_100, 0.1, np.float32), 44_100)) == 100


def test_songs_are_heard_by_rmvpe_where_its_weights_are_named(tmp_path, weights, monkeypatch):
    monkeypatch.setattr("megatron_music.evaluation.songs.evaluate.write_report", lambda *_: None)  # not what is tested
    for name in ("heard", "given"):
        (tmp_path / "songs" / name).mkdir(parents=True)
        noise = np.random.default_rng(0).normal(0, 0.001, (RATE, 1))
        soundfile.write(tmp_path / "songs" / name / "vocals.wav", noise, RATE)
    (tmp_path / "songs" / "given" / "f0.txt").write_text("220\n" * 4)

    def evaluate(named):
        system = evaluate_songs([tmp_path / "songs"], tmp_path / "out", Options(named=named, processes=1)).systems[0]
        return {song.name: song for song in system.songs}

    pyin = evaluate(Named())
    songs = evaluate(Named(rmvpe=weights))
    # Bin 100 lies at 100.6 Hz, nearest to G2.
    assert songs["heard"].measures["lowest_note"] == songs["heard"].measures["highest_note"] == 43.0
    assert songs["heard"].measures["voiced_share"] == 100.0
    assert songs["heard"].details["f0"] == "RMVPE (rmvpe.pt)" and songs["heard"].problems == pyin["heard"].problems[1:]
    assert songs["given"] == pyin["given"] and songs["given"].measures["lowest_note"] == 57.0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / ".songs").iterdir()}
    assert evaluate(Named()) == pyin
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    torch.save(published(peak=160), tmp_path / "rmvpe.pt")
    assert evaluate(Named(rmvpe=tmp_path / "rmvpe.pt"))["heard"].measures["lowest_note"] == 55.0
    with pytest.raises(InputError, match="no such file"):
        evaluate(Named(rmvpe=tmp_path / "songs"))

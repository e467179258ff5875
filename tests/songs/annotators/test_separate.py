"""Separation with a Demucs of random weights, saved to disk and loaded as a real one is."""

import json
import random
from fractions import Fraction

import numpy as np
import pytest
import soundfile
import torch
from demucs.htdemucs import HTDemucs
from safetensors.torch import save_file

from megatron_music.audio.files import read_audio, write_audio
from megatron_music.errors import InputError
from megatron_music.songs.annotators import load_annotator
from megatron_music.songs.manifest import read_manifest, write_manifest
from megatron_music.songs.song import Rejected, Song

RATE = 8000
SHAPE = dict(
    sources=["drums", "vocals", "other"], channels=8, depth=2, nfft=512, t_layers=1, t_heads=2, bottom_channels=8,
    samplerate=RATE, segment=Fraction(1), audio_channels=2,
)  # fmt: skip


def _package(seed: int, **changes) -> dict:
    torch.manual_seed(seed)
    shape = {**SHAPE, **changes}
    return {"klass": HTDemucs, "args": (), "kwargs": shape, "state": HTDemucs(**shape).state_dict()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """``one.th``, ``two.safetensors``, folders with either, and a bag of both."""
    folder = tmp_path_factory.mktemp("demucs")
    for name in ("single", "bag"):
        (folder / name).mkdir()
    torch.save(_package(1), folder / "one.th")
    torch.save(_package(1), folder / "single" / "one-abcd.th")
    torch.save(_package(1), folder / "bag" / "one-abcd.th")
    package = _package(2)
    kwargs = {**package["kwargs"], "segment": {"_type": "fraction", "numerator": 1, "denominator": 1}}
    metadata = {"klass": "demucs.htdemucs.HTDemucs", "args": "[]", "kwargs": json.dumps(kwargs)}
    save_file(package["state"], folder / "bag" / "two.safetensors", metadata)
    save_file(package["state"], folder / "two.safetensors", metadata)
    (folder / "bag" / "both.yaml").write_text("models: [one, two]\nsegment: 1\n")
    return folder


def _mix(folder, seconds: float = 2.6, channels: int = 2, rate: int = RATE, loudness: float = 0.1) -> Song:
    samples = np.random.default_rng(0).normal(0, loudness, (channels, round(seconds * rate)))
    write_audio(folder / "mix.wav", samples.clip(-1, 1), rate)
    return Song("an album/a song", audio={"mix": "mix.wav"}, folder=folder)


def _tracks(song: Song) -> tuple[np.ndarray, np.ndarray]:
    return tuple(read_audio(song.audio_path(track), RATE, mono=False) for track in ("vocals", "accompaniment"))


@pytest.mark.parametrize("weights", ["one.th", "two.safetensors", "single", "bag"])
def test_the_two_tracks_are_together_the_mix(models, tmp_path, weights):
    song = _mix(tmp_path / "songs")
    separated = load_annotator("separate", {"weights": str(models / weights)}).annotate(song, tmp_path / "out")
    vocals, accompaniment = _tracks(separated)
    mix = read_audio(song.audio_path("mix"), RATE, mono=False)
    assert vocals.shape == accompaniment.shape == mix.shape
    assert np.abs(vocals).max() > 1e-3
    # Two roundings to 24 bits.
    assert np.abs(vocals + accompaniment - mix).max() < 2**-22
    info = soundfile.info(separated.audio_path("vocals"))
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_24", RATE, 2)
    assert separated.audio["mix"] == "mix.wav"
    assert separated.audio["vocals"].startswith("../out/stems/")


def test_the_vocals_are_the_models_own(models, tmp_path):
    """Piece by piece as Demucs' own program separates: the same scale, pieces and overlap."""
    from demucs.apply import apply_model
    from demucs.states import load_model

    annotator = load_annotator("separate", {"weights": str(models / "one.th")})
    mix = torch.randn(2, 20000, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.02
    reference = mix.mean(0)
    scaled = (mix - reference.mean()) / reference.std()
    expected = apply_model(load_model(models / "one.th").eval(), scaled[None], shifts=0)[0, 1] * reference.std()
    found = annotator.separate(mix.numpy())["vocals"]
    assert np.abs(found - (expected + reference.mean()).numpy()).max() < 1e-5


@pytest.mark.parametrize(("channels", "rate", "samples"), [(1, RATE, 20800), (3, RATE, 20800), (2, 16000, 20800)])
def test_any_channels_and_rate_become_the_models(models, tmp_path, channels, rate, samples):
    song = _mix(tmp_path, channels=channels, rate=rate)
    separated = load_annotator("separate", {"weights": str(models / "one.th")}).annotate(song, tmp_path)
    assert [track.shape for track in _tracks(separated)] == [(2, samples)] * 2


def test_tracks_above_full_scale_are_lowered_together(models):
    annotator = load_annotator("separate", {"weights": str(models / "one.th")})
    mix = np.sign(np.random.default_rng(0).normal(size=(2, 12000))).astype(np.float32) * 3
    tracks = annotator.separate(mix)
    peak = max(np.abs(track).max() for track in tracks.values())
    assert peak == pytest.approx(1.0)
    both = tracks["vocals"] + tracks["accompaniment"]
    assert both / both[0, 0] == pytest.approx(mix / mix[0, 0], rel=1e-4)


@pytest.mark.parametrize("shifts", ["0", "2"])
def test_the_same_song_is_separated_the_same_way_every_time(models, tmp_path, shifts):
    song, options = _mix(tmp_path), {"weights": str(models / "one.th"), "shifts": shifts}
    random.seed(5)
    before = random.getstate()
    first = load_annotator("separate", options).annotate(song, tmp_path / "a")
    assert random.getstate() == before
    random.seed(6)
    second = load_annotator("separate", options).annotate(song, tmp_path / "b")
    for track in ("vocals", "accompaniment"):
        assert first.audio_path(track).read_bytes() == second.audio_path(track).read_bytes()


def test_finished_stems_are_kept_and_a_change_makes_new_ones(models, tmp_path, monkeypatch):
    song, options = _mix(tmp_path), {"weights": str(models / "one.th")}
    annotator = load_annotator("separate", options)
    first = annotator.annotate(song, tmp_path)
    monkeypatch.setattr(annotator, "separate", None)
    assert annotator.annotate(song, tmp_path) == first
    _mix(tmp_path, seconds=1.5)
    second = load_annotator("separate", options).annotate(song, tmp_path)
    assert second.audio["vocals"] != first.audio["vocals"]
    third = load_annotator("separate", {"weights": str(models / "two.safetensors")}).annotate(song, tmp_path)
    assert len({one.audio["vocals"] for one in (first, second, third)}) == 3


def test_stems_that_a_song_has_stay(models, tmp_path):
    song = Song("a", audio={"mix": "mix.wav", "vocals": "v.wav", "accompaniment": "a.wav"}, folder=tmp_path)
    assert load_annotator("separate", {"weights": str(models / "one.th")}).annotate(song, tmp_path) == song
    _mix(tmp_path)
    again = load_annotator("separate", {"weights": str(models / "one.th"), "overwrite": "true"})
    assert again.annotate(song, tmp_path).audio["vocals"].startswith("stems/")


def test_stems_are_found_from_a_manifest_elsewhere(models, tmp_path):
    song = load_annotator("separate", {"weights": str(models / "one.th")}).annotate(
        _mix(tmp_path / "a"), tmp_path / "b"
    )
    write_manifest(tmp_path / "c" / "manifest.jsonl", [song])
    (read,) = read_manifest(tmp_path / "c" / "manifest.jsonl")
    assert all(read.audio_path(track).is_file() for track in ("mix", "vocals", "accompaniment"))


def test_a_song_without_readable_mix_is_rejected(models, tmp_path):
    annotator = load_annotator("separate", {"weights": str(models / "one.th")})
    (tmp_path / "junk.wav").write_text("junk")
    for audio, rule in [
        ({}, "audio_missing"),
        ({"mix": "no.wav"}, "audio_missing"),
        ({"mix": "junk.wav"}, "audio_unreadable"),
    ]:
        with pytest.raises(Rejected, match=rule):
            annotator.annotate(Song("a", audio=audio, folder=tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_weights_are_told_in_one_line(models, tmp_path):
    def message(weights) -> str:
        with pytest.raises(InputError) as told:
            load_annotator("separate", {"weights": str(weights)})
        return str(told.value)

    with pytest.raises(InputError, match="needs weights .* weights=htdemucs_ft"):
        load_annotator("separate")
    assert "no such file or folder; check the path, or name a model such as one of hdemucs_mmi," in message("htdemuks")
    assert "no such file or folder" in message(tmp_path / "nowhere.th")
    assert "holds 0 .yaml files and 0 models" in message(tmp_path)
    (tmp_path / "junk.th").write_text("junk")
    assert "can't be loaded as a model of Demucs" in message(tmp_path / "junk.th")
    (tmp_path / "notes.txt").write_text("junk")
    assert "is no model of Demucs" in message(tmp_path / "notes.txt")
    (tmp_path / "bag.yaml").write_text("models: [one]\n")
    assert "there is no file one.th or .safetensors" in message(tmp_path)
    torch.save(_package(1, sources=["drums", "bass"]), tmp_path / "two.th")
    assert "separates drums, bass; name a model that finds vocals" in message(tmp_path / "two.th")

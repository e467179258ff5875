"""A whole song: from two folders, lyrics and tags to wav files and a record that tells how they came about."""

import json

import numpy as np
import pytest
import soundfile

from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.errors import InputError
from megatron_music.generation.sampling import SamplingSettings
from megatron_music.generation.song import generate_song, mixed

SETTINGS = SamplingSettings(min_new_tokens=20, max_new_tokens=60)


@pytest.fixture(scope="module")
def codec() -> EmbeddedCodec:
    time = np.arange(32000, dtype=np.float32) / 16000
    tones = [np.sin(2 * np.pi * pitch * time * (1 + 0.1 * time)) * 0.3 for pitch in (110, 330, 880, 1760)]
    return EmbeddedCodec.fit([tone.astype(np.float32) for tone in tones], codebooks=4, codebook_size=16)


@pytest.fixture
def request_for_song(make_model, tmp_path, codec) -> dict:
    folders = {"stage1": make_model("one", positions=256), "stage2": make_model("two", positions=128, seed=1)}
    for folder in folders.values():
        codec.save(folder / "codec")
    (tmp_path / "lyrics.txt").write_text("[verse]\nla la la\n\n[chorus]\nsing with me\n")
    (tmp_path / "tags.txt").write_text("pop female\n")
    return folders | {"lyrics": tmp_path / "lyrics.txt", "tags": tmp_path / "tags.txt", "out": tmp_path / "song"}


def record_of(request):
    return json.loads((request["out"] / "song.json").read_text())


def test_a_song_and_its_record(request_for_song, codec):
    generate_song(**request_for_song, settings=SETTINGS, seed=3)
    out, record = request_for_song["out"], record_of(request_for_song)
    assert sorted(path.name for path in out.iterdir()) == ["accompaniment.wav", "mix.wav", "song.json", "vocals.wav"]
    assert (record["seed"], record["tags"], record["codec"], record["vocabulary"]) == (
        3,
        "pop female",
        "embedded",
        "tiny",
    )
    assert record["settings"]["top_k"] == 50 and record["settings"]["max_new_tokens"] == 60
    assert [segment["text"] for segment in record["segments"]] == [
        "[verse]\nla la la\n\n",
        "[chorus]\nsing with me\n\n",
    ]
    audio = np.array([id for segment in record["segments"] for id in segment["audio"]])
    assert record["frames"] == len(audio) // 2 == record["segments"][-1]["end_frame"]
    stems = {}
    for index, name in enumerate(("vocals", "accompaniment")):
        codes_KT = np.array(record["codes"][name])
        assert codes_KT.shape == (4, record["frames"])
        np.testing.assert_array_equal(codes_KT[0], audio[index::2] - 306)
        stems[name], rate = soundfile.read(out / f"{name}.wav", dtype="float32")
        assert rate == 16000 and len(stems[name]) == record["frames"] * 320
        np.testing.assert_allclose(stems[name], codec.decode(codes_KT) * record["gain"], atol=1e-4)
    mix, _ = soundfile.read(out / "mix.wav", dtype="float32")
    np.testing.assert_allclose(mix, stems["vocals"] + stems["accompaniment"], atol=1e-4)


def test_a_seed_repeats_the_song_and_another_does_not(request_for_song):
    songs = []
    for seed in (1, 1, 2):
        generate_song(**request_for_song, settings=SETTINGS, seed=seed)
        record = record_of(request_for_song)
        songs.append((record["segments"], record["codes"], (request_for_song["out"] / "mix.wav").read_bytes()))
    assert songs[0] == songs[1]
    assert songs[0][0] != songs[2][0]


def test_only_so_many_segments_are_sung_but_all_lyrics_are_read(request_for_song):
    generate_song(**request_for_song, settings=SETTINGS, segments=1)
    one = record_of(request_for_song)
    generate_song(**request_for_song, settings=SETTINGS)
    both = record_of(request_for_song)
    assert len(one["segments"]) == 1 and one["header"] == both["header"]
    assert one["segments"][0] == both["segments"][0]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda request: request["lyrics"].write_text("la la\n"), "lyrics.txt: line 1: stands before any section"),
        (lambda request: request["tags"].write_text(""), "tags.txt: is empty"),
        (lambda request: (request["stage1"] / "config.json").unlink(), "one: has no config.json"),
        (lambda request: (request["stage2"] / "vocabulary.yaml").unlink(), "two: has no vocabulary.yaml"),
        (lambda request: request.update(stage2=request["stage1"].parent / "none"), "none: no such model folder"),
        (lambda request: request.update(codec="xcodec"), "vocabulary tiny: has no codec xcodec"),
        (lambda request: request.update(segments=0), "segments: 0 segments make no song"),
        (lambda request: request.update(windows_at_once=0), "windows_at_once"),
        (lambda request: request.update(weights=request["out"]), "song: no such folder"),
    ],
)
def test_what_makes_no_song_is_told_in_one_line_before_anything_is_sung(request_for_song, change, message):
    change(request_for_song)
    with pytest.raises(InputError, match=message) as caught:
        generate_song(**request_for_song, settings=SETTINGS)
    assert "\n" not in str(caught.value)
    assert not request_for_song["out"].exists()


def test_models_without_a_codec_name_the_option(request_for_song, codec, tmp_path):
    for stage in ("stage1", "stage2"):
        for file in (request_for_song[stage] / "codec").iterdir():
            file.unlink()
        (request_for_song[stage] / "codec").rmdir()
    with pytest.raises(InputError, match="--weights"):
        generate_song(**request_for_song, settings=SETTINGS)
    codec.save(tmp_path / "weights")
    generate_song(**request_for_song, settings=SETTINGS, weights=tmp_path / "weights", segments=1)
    assert (request_for_song["out"] / "mix.wav").is_file()


def test_a_codec_of_another_size_is_refused(request_for_song, tmp_path):
    time = np.arange(32000, dtype=np.float32) / 16000
    other = EmbeddedCodec.fit([np.sin(900 * time * time).astype(np.float32)], codebooks=2, codebook_size=8)
    other.save(tmp_path / "other")
    with pytest.raises(InputError, match="other: has codebooks of 8 codes, the models' vocabulary of 16"):
        generate_song(**request_for_song, settings=SETTINGS, weights=tmp_path / "other")


def test_foreign_folders_are_not_replaced(request_for_song):
    request_for_song["out"].mkdir()
    (request_for_song["out"] / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and holds no song.json"):
        generate_song(**request_for_song, settings=SETTINGS)
    assert (request_for_song["out"] / "notes.txt").read_text() == "mine"


def test_a_mix_that_would_clip_is_made_quieter_with_its_stems():
    vocals, accompaniment = np.array([0.5, -0.2, 0.1]), np.array([0.75, 0.2])
    stems, gain = mixed([vocals, accompaniment])
    assert gain == pytest.approx(0.99 / 1.25)
    np.testing.assert_allclose(stems["mix"], [0.99, 0.0], atol=1e-6)
    np.testing.assert_allclose(stems["vocals"], np.array([0.5, -0.2]) * gain, rtol=1e-6)
    quiet, gain = mixed([vocals * 0.1, accompaniment * 0.1])
    assert gain == 1.0
    np.testing.assert_allclose(quiet["mix"], [0.125, 0.0], atol=1e-6)

"""Songs by vLLM against those of our decoder, id by id; skipped where no vLLM for CPUs is installed."""

import importlib.util
import json
import threading

import numpy as np
import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("this vLLM is not built for CPUs", allow_module_level=True)

from singing import generate

from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.errors import InputError
from megatron_music.generation import vllm_backend
from megatron_music.generation.models import ModelFolder
from megatron_music.generation.plan import plan_song
from megatron_music.generation.request import Reference, SongRequest, Stopped, SungSegment, Watch
from megatron_music.generation.sampling import SamplingSettings
from megatron_music.generation.stage1 import sing
from megatron_music.generation.stage2 import WindowForm, refine
from megatron_music.generation.vllm_backend import VllmBackend

SEGMENTS = ("[verse]\nla la la\n\n", "[chorus]\nsing with me\n\n", "[outro]\n\n")
# vLLM's attention on CPUs wants heads of at least 32 numbers.
HEAD = {"head_dim": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, write_model) -> list[ModelFolder]:
    folder = tmp_path_factory.mktemp("models")
    paths = [write_model(folder / "one", 256, seed=2, **HEAD), write_model(folder / "two", 128, seed=3, **HEAD)]
    return [ModelFolder.open(path) for path in paths]


@pytest.fixture(scope="module")
def backend(folders) -> VllmBackend:
    return VllmBackend(folders, "cpu", "float32", keep=True)


@pytest.fixture(scope="module")
def network(folders):
    return folders[0].network()


def planned(folder, *requests):
    return [plan_song(folder, folder.tokenizer(), request) for request in requests]


def several() -> list[SongRequest]:
    past = (SungSegment(SEGMENTS[0], np.full((2, 30), 3, np.int16)),)
    return [
        SongRequest("pop", SEGMENTS, seed=1),
        SongRequest("rock", SEGMENTS, seed=1),
        SongRequest("pop", SEGMENTS, seed=2, segments=1),
        SongRequest("pop", seed=3),
        SongRequest("pop", SEGMENTS, seed=4, past=past),
        SongRequest("pop", seed=5, tracks="mix"),
        SongRequest("pop", SEGMENTS, seed=6, reference=Reference((np.arange(12, dtype=np.int16),))),
    ]


def settings_of(scales, temperature=1.0, shortest=10, longest=90) -> SamplingSettings:
    return SamplingSettings(
        temperature=temperature, min_new_tokens=shortest, max_new_tokens=longest,
        guidance_first=scales[0], guidance_rest=scales[1],
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("scales", [(1.5, 1.2), (1.0, 1.2), (1.5, 1.0), (1.0, 1.0)])
def test_a_song_is_the_decoders_song(folders, backend, network, scales, temperature):
    settings = settings_of(scales, temperature)
    plans = planned(folders[0], SongRequest("pop", SEGMENTS, seed=7))
    (expected,) = sing(network, folders[0].positions, plans, settings)
    for _ in range(2):
        (song,) = backend.sing(plans, settings)
        assert song.segments == expected.segments
    assert len(song.segments) == 3 and len({id for segment in song.segments for id in segment.audio}) > 4


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("scales", [(1.5, 1.2), (1.5, 1.0), (1.0, 1.0)])
def test_songs_side_by_side_even_where_the_cache_is_too_small_for_them(folders, network, monkeypatch, share, scales):
    """Songs longer than the context, whose two rows vLLM reads at different steps, or puts off half-way."""
    settings = settings_of(scales, shortest=60)
    plans = planned(folders[0], *several())
    expected = sing(network, folders[0].positions, plans, settings)
    asked, blocks, ask = [], vllm_backend._blocks, vllm_backend._VllmChoir._ask
    monkeypatch.setattr(vllm_backend, "_blocks", lambda row_tokens: int(share * blocks(row_tokens)))
    monkeypatch.setattr(
        vllm_backend._VllmChoir, "_ask", lambda choir, voice: (asked.append(voice.number), ask(choir, voice))
    )
    songs = VllmBackend(folders, "cpu", "float32").sing(plans, settings)
    assert [song.segments for song in songs] == [song.segments for song in expected]
    assert max(len(song.plan.header) + sum(len(segment.ids) for segment in song.segments) for song in songs) > 256
    if share < 1:
        assert len(asked) > 5 * sum(len(song.segments) for song in songs)


@pytest.mark.parametrize("repeats", [True, False])
def test_stage_2_gives_the_decoders_codes(folders, backend, repeats):
    rng = np.random.default_rng(0)
    tracks = [rng.integers(0, 16, frames).astype(np.int16) for frames in (29, 0, 27, 1)]
    form = WindowForm(folders[1].vocabulary.codec(), 4, repeats, 12)
    expected = refine(folders[1], folders[1].network(), tracks, form)
    for windows_at_once in (None, 2):
        for found, wanted in zip(backend.refine(tracks, form, windows_at_once), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_callbacks_tell_every_token_and_a_stop_leaves_the_engine_empty(folders, backend):
    plans, settings = planned(folders[0], SongRequest("pop", SEGMENTS)), settings_of((1.5, 1.2))
    told, stop = [], threading.Event()
    watch = Watch(on_token=lambda *token: told.append(token) or len(told) == 7 and stop.set(), stop=stop)
    with pytest.raises(Stopped):
        backend.sing(plans, settings, watch)
    assert told == [(0, 0, count) for count in range(1, 8)]
    whole = []
    (song,) = backend.sing(plans, settings, Watch(on_token=lambda *token: whole.append(token)))
    assert whole == [(0, n, k + 1) for n, segment in enumerate(song.segments) for k in range(len(segment.audio))]


def test_generate_by_vllm_and_by_transformers_make_one_song(folders, tmp_path):
    time = np.arange(16000, dtype=np.float32) / 16000
    tones = [(np.sin(2 * np.pi * pitch * time) * 0.3).astype(np.float32) for pitch in (110, 330, 880, 1760)]
    codec = EmbeddedCodec.fit(tones, codebooks=4, codebook_size=16)
    for folder in folders:
        codec.save(folder.path / "codec")
    (tmp_path / "lyrics.txt").write_text("[verse]\nla la la\n\n[chorus]\nsing with me\n")
    (tmp_path / "tags.txt").write_text("pop\n")
    asked = {"lyrics": tmp_path / "lyrics.txt", "tags": tmp_path / "tags.txt", "settings": settings_of((1.5, 1.2))}
    models = {"stage1": folders[0].path, "stage2": folders[1].path}
    for backend in ("transformers", "vllm"):
        generate(tmp_path / backend, **asked, **models, backend=backend)
    generate(tmp_path / "again", repeat=tmp_path / "vllm" / "song.json")
    records = [json.loads((tmp_path / name / "song.json").read_text()) for name in ("transformers", "vllm", "again")]
    assert [record.pop("backend") for record in records] == ["transformers", "vllm", "vllm"]
    assert records[0] == records[1] == records[2]


def test_another_device_than_vllms_is_refused(folders):
    with pytest.raises(InputError, match="--backend: this vLLM runs on cpu, not on cuda; name another --device"):
        VllmBackend(folders, "cuda", "float32")

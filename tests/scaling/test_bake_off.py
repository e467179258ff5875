"""Two codecs of different size on the same songs, a run trained on each, and the table against plain computations."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_codecs import tiny_dac, tiny_encodec, tiny_xcodec

from megatron_music.audio.codec import load_codec
from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.audio.files import read_audio, resample, write_audio
from megatron_music.corpus.build import build_corpus
from megatron_music.corpus.encode import encode_manifest
from megatron_music.corpus.indexed import IndexedSource
from megatron_music.engine.processes import launch
from megatron_music.errors import InputError
from megatron_music.evaluation import reconstruction
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.bake_off import run_bake_off
from megatron_music.scaling.compare import compare
from megatron_music.scaling.contenders import BakeOff
from megatron_music.vocabulary.kinds import Kind

SECONDS, RATE = 2, 16_000


@pytest.fixture(scope="module")
def place(song_corpus, toy_recipe, tmp_path_factory) -> Path:
    """Excerpts of four recordings, a codec of 4 x 16 codes and one of 2 x 4, and a run on the codes of each."""
    import scaling_workers

    folder, toy = tmp_path_factory.mktemp("bake_off"), song_corpus.parent
    lines = [json.loads(line) for line in (toy / "songs" / "manifest.jsonl").read_text().splitlines()]
    manifest = []
    for number, line in enumerate(lines):
        for field in ("audio", "vocals_audio"):
            samples = read_audio(toy / "songs" / line[field], RATE)[5 * RATE :][: SECONDS * RATE]
            write_audio(folder / f"{field}.{number}.wav", samples, RATE, "FLOAT")
        manifest.append(
            {"id": line["id"], "audio": f"audio.{number}.wav", "vocals_audio": f"vocals_audio.{number}.wav"}
        )
    write_lines(folder / "songs.jsonl", manifest)
    encode_manifest(toy / "songs" / "manifest.jsonl", folder / "codes", codebooks=2, codebook_size=4)
    spec = yaml.safe_load((toy / "spec.yaml").read_text())
    words = yaml.safe_load((toy / "vocabulary.yaml").read_text())
    words["codecs"][0] |= {"codebooks": 2, "codebook_size": 4}
    (folder / "vocabulary.yaml").write_text(yaml.safe_dump(words))
    for source in spec["sources"].values():
        source["manifest"] = str(folder / "codes" / "manifest.jsonl")
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec | {"tokenizer": str(toy / "tokenizer.model")}))
    build_corpus(folder / "spec.yaml", folder / "corpus", processes=1)
    recipes = []
    for name, corpus in (("large", song_corpus), ("small", folder / "corpus")):
        own = ["phases.constant.tokens=6k", "phases.annealing.tokens=10k", "watch.validation.every_steps=10",
               "watch.invalid_tokens.every_steps=16", f"run={folder / 'runs' / name}", f"corpus={corpus}",
               f"vocabulary={corpus / 'vocabulary.yaml'}"]  # fmt: skip
        recipes.append(Recipe.load(toy_recipe, own))
    launch(scaling_workers.train_all, 1, recipes)
    codecs = {"small": {"codec": "embedded", "weights": "codes/codec", "run": "runs/small"},
              "large": {"codec": "embedded", "weights": str(song_corpus / "codec"), "run": "runs/large"}}  # fmt: skip
    (folder / "codecs.yaml").write_text(yaml.safe_dump({"songs": "songs.jsonl", "codecs": codecs}, sort_keys=False))
    return folder


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def comparison(place) -> dict:
    """The bake-off of the two codecs, in ``place/out``."""
    return run_bake_off(place / "codecs.yaml", place / "out")


def expected_row(place: Path, codec: EmbeddedCodec, name: str) -> tuple[dict, np.ndarray, float]:
    """Measures of one file of audio after a codec, its codes, and its seconds."""
    samples = read_audio(place / name, RATE)
    codes_KT = codec.encode(samples)
    decoded = codec.decode(codes_KT)[: len(samples)]
    found = {
        "mel_distance_db": reconstruction.mel_distance_db(samples, decoded, RATE),
        "stft_distance": reconstruction.stft_distance(samples, decoded, RATE),
        "si_sdr_db": reconstruction.si_sdr_db(samples, decoded),
    }
    found |= reconstruction.pitch_errors(samples, decoded, RATE) if name.startswith("vocals") else {}
    return found, codes_KT, len(samples) / RATE


def test_reconstruction_and_bits_by_hand(place, comparison, song_corpus):
    for name, folder, books, size in (
        ("small", place / "codes" / "codec", 2, 4),
        ("large", song_corpus / "codec", 4, 16),
    ):
        codec, found, codes = EmbeddedCodec.load(folder), comparison["codecs"][name], []
        for track, field in (("mix", "audio"), ("vocals", "vocals_audio")):
            rows = [expected_row(place, codec, f"{field}.{number}.wav") for number in range(4)]
            codes += [codes_KT for _, codes_KT, _ in rows]
            names = {key for row, _, _ in rows for key in row}
            means = {key: np.mean([row[key] for row, _, _ in rows if key in row]) for key in names}
            assert found["tracks"][track]["measures"] == pytest.approx(means)
            assert list(found["tracks"][track]["bands"]) == ["0-500", "500-2000", "2000-4000", "4000-8000"]
        every = np.concatenate(codes, axis=1)
        assert every.shape == (books, 8 * SECONDS * 50)
        assert found["bits_per_second"] == pytest.approx(books * math.log2(size) * 50)
        shares = [np.unique(codes_T, return_counts=True)[1] / every.shape[1] for codes_T in every]
        bits = -sum(float((share * np.log2(share)).sum()) for share in shares) * 50
        assert found["entropy_bits_per_second"] == pytest.approx(bits)
        assert found["codes_used"] == [len(share) for share in shares]
    small, large = (comparison["codecs"][name]["tracks"]["mix"]["measures"] for name in ("small", "large"))
    assert large["mel_distance_db"] < small["mel_distance_db"]


def test_losses_by_the_second_by_hand(place, comparison, song_corpus):
    for name, corpus, size in (("small", place / "corpus", 4), ("large", song_corpus, 16)):
        lines = [json.loads(line) for line in (place / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if "validation/loss" in line][-1]
        source = IndexedSource(corpus / "held_out")
        kinds = np.concatenate([source.document(index)[1] for index in range(len(source))])
        frames = [(kinds == kind).sum() for kind in (Kind.VOCAL, Kind.ACCOMPANIMENT)]
        seconds = frames[0] / 50
        nats = sum(
            count * last[f"validation/loss/{kind}"]
            for count, kind in zip(frames, ("vocal", "accompaniment"), strict=True)
        )
        model = comparison["codecs"][name]["language_model"]
        assert model["tokens_per_second"] == pytest.approx(100, rel=1e-3)
        assert model["nats_per_second"] == pytest.approx(nats / seconds, rel=1e-3)
        assert model["bits_per_second"] == pytest.approx(nats / seconds / math.log(2), rel=1e-3)
        assert model["nats_per_token"] == pytest.approx(nats / sum(frames), rel=1e-3)
        assert model["guessing_bits_per_second"] == pytest.approx(100 * math.log2(size), rel=1e-3)
        assert model["state"] == "done"
        invalid = [line["invalid_token_share"] for line in lines if "invalid_token_share" in line][-1]
        assert model["invalid_token_share"] == invalid


def test_the_verdict_follows_the_thresholds(comparison):
    for codec in comparison["codecs"].values():
        assert codec["class"] == "acoustic"
        limits, model = codec["limits"], codec["language_model"]
        share = math.log(codec["codebook_size"]) / math.log(1024)
        assert limits["loss"]["go_below"] == pytest.approx(4 * share)
        learned = model["nats_per_token"] < limits["loss"]["go_below"]
        valid = model["invalid_token_share"] < limits["invalid"]["go_below"]
        bad = model["invalid_token_share"] > limits["invalid"]["no_go_above"]
        assert codec["verdict"] == ("does not learn" if bad else "learns" if learned and valid else "open")


def test_again_it_measures_nothing(place, comparison, monkeypatch):
    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr("megatron_music.scaling.contenders.Contender.rebuild", never)
    assert run_bake_off(place / "codecs.yaml", place / "out") == comparison


def test_a_killed_run_goes_on_and_a_codec_is_added_alone(place, comparison, tmp_path, monkeypatch):
    from megatron_music.scaling.contenders import Contender

    calls, rebuild = [], Contender.rebuild

    def counted(one, song, track, seconds):
        calls.append((one.name, song.id, track))
        if len(calls) == 11:
            raise KeyboardInterrupt
        return rebuild(one, song, track, seconds)

    monkeypatch.setattr(Contender, "rebuild", counted)
    with pytest.raises(KeyboardInterrupt):
        run_bake_off(place / "codecs.yaml", tmp_path / "out")
    assert not (tmp_path / "out" / "comparison.json").exists()
    assert run_bake_off(place / "codecs.yaml", tmp_path / "out") == comparison
    assert len(calls) == 17 and calls[10] == calls[11]
    content = yaml.safe_load((place / "codecs.yaml").read_text())
    content["codecs"]["half"] = {"codec": "embedded", "weights": content["codecs"]["large"]["weights"], "codebooks": 2}
    (place / "three.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    three = run_bake_off(place / "three.yaml", tmp_path / "out")
    assert {name for name, _, _ in calls[17:]} == {"half"} and len(calls) == 25
    assert {name: three["codecs"][name] for name in ("small", "large")} == comparison["codecs"]
    assert three["codecs"]["half"]["bits_per_second"] == 2 * 4 * 50
    assert three["missing"][-1]["why"] == "no run is named for half"


def test_codes_from_elsewhere_are_measured_like_loaded_ones(place, comparison, tmp_path):
    codec, lines = EmbeddedCodec.load(place / "codes" / "codec"), []
    for line in map(json.loads, (place / "songs.jsonl").read_text().splitlines()):
        made = {"id": line["id"]}
        for audio, codes in (("audio", "codec"), ("vocals_audio", "vocals_codec")):
            codes_KT = codec.encode(read_audio(place / line[audio], RATE))
            made |= {codes: f"{line[audio]}.npy", audio: line[audio]}
            np.save(tmp_path / made[codes], codes_KT)
            write_audio(tmp_path / line[audio], codec.decode(codes_KT), RATE, "FLOAT")
        lines.append(made)
    write_lines(tmp_path / "manifest.jsonl", lines)
    entry = {"codec": "hificodec", "codes": "manifest.jsonl", "codebooks": 2, "codebook_size": 4,
             "frames_per_second": 50, "sample_rate": RATE}  # fmt: skip
    spec = {"songs": str(place / "songs.jsonl"), "codecs": {"HiFi-Codec": entry}}
    (tmp_path / "codecs.yaml").write_text(yaml.safe_dump(spec))
    found = run_bake_off(tmp_path / "codecs.yaml", tmp_path / "out")["codecs"]["HiFi-Codec"]
    loaded = comparison["codecs"]["small"]
    for track in ("mix", "vocals"):
        assert found["tracks"][track]["measures"] == pytest.approx(loaded["tracks"][track]["measures"], rel=1e-5)
        assert found["tracks"][track]["bands"] == pytest.approx(loaded["tracks"][track]["bands"], rel=1e-5)
    for name in ("bits_per_second", "entropy_bits_per_second", "frames_per_second", "codes_used"):
        assert found[name] == loaded[name]
    assert (found["class"], found["codec"]) == ("acoustic", "hificodec")
    np.save(tmp_path / lines[0]["codec"], np.full((2, 5), 4, np.int16))
    with pytest.raises(InputError, match="codes_range: .* hificodec has 0 to 3; mend the codes"):
        run_bake_off(tmp_path / "codecs.yaml", tmp_path / "out")


def test_the_codecs_of_the_deck_as_tiny_random_networks(place, tmp_path):
    networks = {"X-Codec": ("xcodec", tiny_xcodec()), "EnCodec": ("encodec32k", tiny_encodec(32_000)),
                "DAC": ("dac16k", tiny_dac())}  # fmt: skip
    codecs = {}
    for name, (codec, network) in networks.items():
        network.save_pretrained(tmp_path / name)
        codecs[name] = {"codec": codec, "weights": name}
    write_lines(tmp_path / "songs.jsonl", [{"id": "a", "vocals_audio": str(place / "vocals_audio.0.wav")}])
    (tmp_path / "codecs.yaml").write_text(yaml.safe_dump({"songs": "songs.jsonl", "codecs": codecs}, sort_keys=False))
    found = run_bake_off(tmp_path / "codecs.yaml", tmp_path / "out")
    assert (found["sample_rate"], found["tracks"]) == (RATE, ["vocals"])
    classes = {name: codec["class"] for name, codec in found["codecs"].items()}
    assert classes == {"X-Codec": "semantic", "EnCodec": "acoustic", "DAC": "acoustic"}
    for name, (codec_name, _) in networks.items():
        codec, shown = load_codec(codec_name, tmp_path / name), found["codecs"][name]
        codes_KT = codec.encode(read_audio(place / "vocals_audio.0.wav", codec.sample_rate))
        original = read_audio(place / "vocals_audio.0.wav", RATE)
        decoded = resample(codec.decode(codes_KT), codec.sample_rate, RATE)[: len(original)]
        expected = reconstruction.mel_distance_db(original, decoded, RATE)
        assert shown["tracks"]["vocals"]["measures"]["mel_distance_db"] == pytest.approx(expected)
        assert (shown["codebooks"], shown["codebook_size"]) == (codec.codebooks, codec.codebook_size)
        rate = codes_KT.shape[1] / SECONDS
        assert shown["bits_per_second"] == pytest.approx(codec.codebooks * math.log2(codec.codebook_size) * rate)


def test_the_page_and_the_text(place, comparison):
    text = compare([place / "codecs.yaml"], place / "out")
    assert text.endswith(f"written: {place / 'out' / 'comparison.html'}")
    model = comparison["codecs"]["small"]["language_model"]
    verdict = next(line for line in text.splitlines() if line.startswith("small") and "acoustic" in line)
    assert f"{model['nats_per_token']:.3f}" in verdict and f"{model['nats_per_second']:.1f}" in verdict
    assert "(X-Codec)" in text and "word errors: not measured, no recogniser is named" in text
    page = (place / "out" / "comparison.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and f"{model['nats_per_second']:.1f}" in page
    assert json.loads(compare([place / "codecs.yaml"], place / "out", as_json=True)) == comparison


def test_a_run_that_still_trains_is_marked(place, tmp_path):
    run = tmp_path / "small"
    run.mkdir()
    (run / "recipe.yaml").write_text((place / "runs" / "small" / "recipe.yaml").read_text())
    lines = (place / "runs" / "small" / "metrics.jsonl").read_text().splitlines(keepends=True)
    first = next(at for at, line in enumerate(lines) if "validation/loss" in line)
    content = yaml.safe_load((place / "codecs.yaml").read_text())
    content["codecs"] = {"small": content["codecs"]["small"] | {"run": str(run)}}
    (place / "running.yaml").write_text(yaml.safe_dump(content))
    (run / "metrics.jsonl").write_text("".join(lines[: first + 1]))
    assert ", running" in compare([place / "running.yaml"], place / "out")
    (run / "metrics.jsonl").write_text("".join(lines[:first]))
    with pytest.raises(InputError, match=r"codecs.small.run: .*small has no held-out loss; wait for it"):
        compare([place / "running.yaml"], place / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": 0}, "seconds: found 0; write a number above 0"),
        ({"song": "x"}, "song: unknown field; did you mean songs?"),
        ({"songs": "none.jsonl"}, "none.jsonl: no such file"),
        ({"tracks": ["accompaniment"]}, "the song names no accompaniment audio; add it"),
        ({"codecs": {}}, "codecs: found {}; write at least 1 of them"),
        ({"codecs": {"a": {"codec": "embedded"}}}, "name the codec's `weights`, or a manifest of its `codes`"),
        ({"codecs": {"a": {"codec": "dac", "codes": "songs.jsonl", "codebooks": 2}}},
         "codes from elsewhere need codebook_size"),
        ({"codecs": {"a": {"codec": "embedded", "weights": "x", "sample_rate": 9}}},
         "sample_rate is the loaded codec's own"),
        ({"codecs": {"a": {"codec": "embedded", "weights": "nowhere"}}}, "codecs.a: nowhere: no such folder"),
        ({"codecs": {"a": {"codec": "opus", "weights": "x"}}}, "codecs.a: codec 'opus': is not known"),
        ({"codecs": {"a": {"codec": "embedded", "weights": "codes/codec", "run": "codes"}}}, "codecs.a.run: "),
        ({"codecs": {"a": {"codec": "embedded", "weights": "codes/codec", "run": "runs/large"}}},
         "codecs.a.run: was trained on codes of another embedded codec"),
        ({"recogniser": {"weights": "nowhere"}}, "recogniser: nowhere: no such file or folder"),
        ({"recogniser": {"weight": "nowhere"}}, "recogniser.weight: unknown field; did you mean weights?"),
    ],
)  # fmt: skip
def test_files_that_are_no_good(place, change, message):
    content = yaml.safe_load((place / "codecs.yaml").read_text())
    (place / "wrong.yaml").write_text(yaml.safe_dump(content | change))
    with pytest.raises(InputError) as caught:
        run_bake_off(place / "wrong.yaml", place / "never")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (place / "never").exists()


def test_audio_that_is_missing(place, tmp_path):
    lines = [json.loads(line) for line in (place / "songs.jsonl").read_text().splitlines()]
    lines[2]["audio"] = "gone.wav"
    write_lines(place / "gone.jsonl", lines)
    content = yaml.safe_load((place / "codecs.yaml").read_text())
    (place / "wrong.yaml").write_text(yaml.safe_dump(content | {"songs": "gone.jsonl"}))
    with pytest.raises(InputError, match=r"gone.jsonl: \S+: there is no mix audio .*gone.wav; mend the path"):
        BakeOff.read(place / "wrong.yaml")
    (place / "bad.jsonl").write_text('{"id": 1}\n{"id": \n')
    (place / "wrong.yaml").write_text(yaml.safe_dump(content | {"songs": "bad.jsonl"}))
    with pytest.raises(InputError, match="bad.jsonl: line 2: .*; mend the line or take it out"):
        BakeOff.read(place / "wrong.yaml")
    with pytest.raises(InputError, match="is a file beside other paths"):
        compare([place / "codecs.yaml", place / "runs"], None)

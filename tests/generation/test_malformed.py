"""500 seeded malformed prompts, references, songs and model folders: each ends in one line, and writes nothing."""

import json
import shutil

import numpy as np
import pytest
from singing import generate

from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.audio.files import write_audio
from megatron_music.errors import InputError
from megatron_music.generation.sampling import SamplingSettings

SHORTEST = SamplingSettings(min_new_tokens=2, max_new_tokens=2)
EACH = 125


@pytest.fixture
def asked(make_model, tmp_path):
    time = np.arange(16000, dtype=np.float32) / 16000
    codec = EmbeddedCodec.fit([np.sin(900 * time * time).astype(np.float32)], codebooks=4, codebook_size=16)
    folders = {"stage1": make_model("one"), "stage2": make_model("two", positions=128, seed=1)}
    for stage, task in zip(folders, ("lyrics_to_song", "residual"), strict=True):
        codec.save(folders[stage] / "codec")
        sources = {"songs": {"task": task, "options": {}, "shares": {}}}
        documents = {"codec": "embedded", "context_tokens": 512, "sources": sources}
        (folders[stage] / "documents.json").write_text(json.dumps(documents))
    (tmp_path / "lyrics.txt").write_text("[verse]\nla la la\n\n[chorus]\nsing with me\n")
    (tmp_path / "tags.txt").write_text("pop female\n")
    prompt = {"lyrics": tmp_path / "lyrics.txt", "tags": tmp_path / "tags.txt"}
    return folders | prompt | {"out": tmp_path / "song", "settings": SHORTEST, "say": lambda line: None}


def refused(asked, seed):
    with pytest.raises(InputError) as caught:
        generate(**asked)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600, seed
    assert not asked["out"].exists(), seed


def noise(rng, most=400):
    return rng.integers(0, 256, int(rng.integers(1, most)), dtype=np.uint8).tobytes()


def damaged(content: bytes, rng) -> bytes:
    """Nothing, noise, the first part, or the first part and noise."""
    cut = content[: int(rng.integers(0, len(content) // 2))]
    return (b"", b"\xff" + noise(rng), cut, cut + b"\x00\xff" + noise(rng))[int(rng.integers(4))]


def test_malformed_prompts(asked, tmp_path):
    words = ["la", "<EOA>", "[verse]", "ünïcödé", "\u2028", "]", "[", "<SOA>", "\t", "0"]
    for seed in range(EACH):
        rng = np.random.default_rng(seed)
        text = " ".join(rng.choice(words, int(rng.integers(1, 30))))
        lyrics, tags = "[verse]\nla la\n", "pop\n"
        kind = seed % 8
        if kind == 0:  # nothing that is sung
            lines = ["[ti:A]", f"[00:0{rng.integers(9)}.00]Lyrics by: Anna", "(x2)", "♪", "", "[offset:1]"]
            lyrics = "\n".join(rng.permutation(lines))
        elif kind == 1:
            lyrics = ("", " \n\t\n", "\n" * int(rng.integers(1, 99)))[int(rng.integers(3))]
        elif kind == 2:  # special tokens
            lyrics += text + "<EOD>"
        elif kind == 3:
            tags += "\n" * int(rng.integers(3)) + "more " + text
        elif kind == 4:
            tags = ("", "\n\n", "  ")[int(rng.integers(3))]
        elif kind == 5:
            tags = f"pop {text.replace(chr(0x2028), '')} <stage_1>"
        elif kind == 6:  # too long for the model
            lyrics = f"[verse]\n{'la ' * int(rng.integers(400, 2000))}\n"
        (tmp_path / "lyrics.txt").write_text(lyrics, encoding="utf-8")
        (tmp_path / "tags.txt").write_text(tags, encoding="utf-8")
        if kind == 7:  # not text
            name = ("lyrics", "tags")[int(rng.integers(2))]
            asked[name].write_bytes(b"[verse]\n\xff\xfe" + noise(rng))
        refused(asked, seed)


def test_malformed_references(asked, tmp_path):
    # The model folder does not say what it was trained on, so that references are not refused for that.
    for stage in ("stage1", "stage2"):
        (asked[stage] / "documents.json").unlink()
    time = np.arange(32000) / 16000
    write_audio(tmp_path / "good.wav", (0.3 * np.sin(3000 * time)).astype(np.float32), 16000)
    write_audio(tmp_path / "good.flac", (0.3 * np.sin(3000 * time)).astype(np.float32), 16000)
    for seed in range(EACH):
        rng = np.random.default_rng(seed)
        kind, span, files = seed % 9, (0.0, 30.0), ["bad.wav"]
        bad = tmp_path / "bad.wav"
        if kind == 0:  # the header is gone
            files = ["bad.flac"]
            (tmp_path / "bad.flac").write_bytes(noise(rng) + (tmp_path / "good.flac").read_bytes()[60:])
        elif kind == 1:  # too short
            write_audio(bad, rng.normal(size=int(rng.integers(0, 15999))).astype(np.float32) * 0.1, 16000)
        elif kind == 2:  # silent
            write_audio(bad, rng.normal(size=20000).astype(np.float32) * rng.choice([0, 1e-6, 3e-5]), 16000)
        elif kind == 3:  # not numbers
            samples = rng.normal(size=20000).astype(np.float32)
            samples[int(rng.integers(20000))] = rng.choice([np.nan, np.inf])
            write_audio(bad, samples, 16000, "FLOAT")
        elif kind == 4:  # a part behind the end, or none
            files, span = ["good.wav"], tuple(float(end) for end in (rng.uniform(1.1, 9), rng.uniform(-1, 12)))
        elif kind == 5:  # two tracks of two songs
            write_audio(bad, rng.normal(size=int(rng.integers(50000, 90000))).astype(np.float32) * 0.1, 16000)
            files = ["good.wav", "bad.wav"]
        elif kind == 6:  # codes of another codec, or damaged
            files = ["bad.npy"]
            codes = rng.integers(-5, 40, (int(rng.integers(1, 9)), 80))
            codes[0, :2] = (-1, 17)
            np.save(tmp_path / "bad.npy", codes)
            if rng.random() < 0.5:
                (tmp_path / "bad.npy").write_bytes(damaged((tmp_path / "bad.npy").read_bytes(), rng))
        elif kind == 7:
            files = [("none.wav", "shard.parquet#a/b", ".")[int(rng.integers(3))]]
        else:  # three tracks, or one code throughout
            np.save(tmp_path / "bad.npy", np.full((4, 80), int(rng.integers(16))))
            files = (["good.wav"] * 3, ["bad.npy"])[int(rng.integers(2))]
        refused(asked | {"reference": [tmp_path / name for name in files], "reference_s": span}, seed)


def test_malformed_songs_to_repeat_or_to_go_on_with(asked, tmp_path):
    generate(**asked)
    good = json.loads((asked["out"] / "song.json").read_text())
    bad = tmp_path / "bad.json"
    asked["out"] = tmp_path / "another"
    wrong = [None, -1, 1.5, "x", [], {}, [[]], {"a": 1}, True, "x" * 30, [1, "a"]]
    needed = {
        "repeat": [["models"], ["models", "stage1"], ["models", "stage2", "folder"], ["request"], ["request", "tags"],
                   ["request", "seed"], ["request", "tracks"], ["request", "past"], ["settings"], ["settings", "top_k"],
                   ["models", "stage1", "fingerprint"], ["codec"], ["device"]],
        "past": [["codes"], ["codes", "vocals"], ["codes", "accompaniment"], ["segments"], ["request"], ["codec"]],
    }  # fmt: skip
    for seed in range(EACH):
        rng = np.random.default_rng(seed)
        verb = ("repeat", "past")[seed % 2]
        record = json.loads(json.dumps(good))
        path = needed[verb][int(rng.integers(len(needed[verb])))]
        place = record
        for name in path[:-1]:
            place = place[name]
        old = place[path[-1]]
        kind = int(rng.integers(3))
        if kind == 0:
            bad.write_bytes(damaged(json.dumps(good).encode(), rng))
        else:
            # A value of another type than the one that stands there.
            fitting = [value for value in wrong if type(value) is not type(old) and value is not None]
            if kind == 1:
                del place[path[-1]]
            else:
                place[path[-1]] = fitting[int(rng.integers(len(fitting)))]
            bad.write_text(json.dumps(record))
        changed = {"lyrics": None, "tags": None} if verb == "repeat" else {}
        refused(asked | changed | {verb: bad}, seed)


def test_malformed_model_folders(asked, tmp_path):
    originals = {stage: asked[stage] for stage in ("stage1", "stage2")}
    files = ["config.json", "vocabulary.yaml", "tokenizer.model", "model.safetensors", "documents.json"]
    files += ["codec/codec.json", "codec/codebooks.safetensors"]
    for seed in range(EACH):
        rng = np.random.default_rng(seed)
        for stage, folder in originals.items():
            shutil.rmtree(tmp_path / stage, ignore_errors=True)
            shutil.copytree(folder, tmp_path / stage)
            asked[stage] = tmp_path / stage
        name = files[seed % len(files)]
        # The first model's tokenizer and codec are those that are used.
        stage = ("stage1", "stage2")[int(rng.integers(2))] if name in files[:2] + files[3:5] else "stage1"
        file = asked[stage] / name
        if rng.random() < 0.25 and name != "documents.json":
            file.unlink()
        elif name == "tokenizer.model":
            file.write_bytes(b"\xff" + noise(rng))
        else:
            file.write_bytes(damaged(file.read_bytes(), rng))
        refused(asked, seed)

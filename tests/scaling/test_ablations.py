"""Ablation files: their recipes differ in exactly what they say, and one runs to its end and is read right."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_music.corpus.blend import token_shares
from megatron_music.corpus.build import build_corpus
from megatron_music.corpus.indexed import IndexedSource
from megatron_music.corpus.spec import BuildSpec
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.ablation import Ablation
from megatron_music.scaling.ablation_result import AudioNats, differences, result_table
from megatron_music.scaling.ablations import read_seeds, run_ablations
from megatron_music.songs.codes import load_codes
from megatron_music.songs.excerpts import write_excerpts
from megatron_music.songs.manifest import read_manifest
from megatron_music.vocabulary.kinds import AUDIO_KINDS, Kind
from megatron_music.vocabulary.text import train_text_tokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

DATA = Path(__file__).parents[2] / "examples" / "ablations"
FILES = sorted(path for path in DATA.glob("*.yaml") if path.stem not in ("base", "corpus", "vocabulary"))
TINY = [
    "network.hidden_size=16", "network.layers=1", "network.attention_heads=2", "network.ffn_hidden_size=32",
    "network.position_limit=256", "phases.constant.context_tokens=256", "phases.annealing.context_tokens=256",
    "phases.constant.tokens=768", "phases.annealing.tokens=512",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The ablations' files over a corpus of six made-up songs, three of them held out, two lines an excerpt."""
    folder = tmp_path_factory.mktemp("ablations")
    codec = Vocabulary.load(DATA / "vocabulary.yaml").codec()
    songs, texts = [], []
    for number, name in enumerate(["auld_lang_syne", "my_bonnie", "skip_to_my_lou", "clementine", "oh_susanna", "row"]):
        rng = np.random.default_rng(number)
        for track in ("mix", "vocals", "accompaniment"):
            np.save(folder / f"{name}.{track}.npy", rng.integers(0, 128, (1, 400)).astype(np.int16))
        lines = [{"text": f"{name} line {at}", "start": 0.5 + 2 * at, "end": 2.2 + 2 * at} for at in range(3)]
        texts += [f"[verse]\n{line['text']}\n\n" for line in lines]
        songs.append({"id": f"{name}.t0", "codec": f"{name}.mix.npy", "vocals_codec": f"{name}.vocals.npy",
                      "instrumental_codec": f"{name}.accompaniment.npy", "audio_length_in_sec": 8.0,
                      "genres": "folk", "language": "en", "lines": lines})  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(song) + "\n" for song in songs))
    counts = write_excerpts(folder / "manifest.jsonl", folder / "runs" / "ablations", codec)
    assert counts == {"excerpts": 6, "clips": 18, "swapped": 6}
    tokenizer = folder / "runs" / "ablations" / "tokenizer.model"
    train_text_tokenizer(["Generate music from the given lyrics segment by segment.", *texts], tokenizer, 300)
    files = folder / "examples" / "ablations"
    files.mkdir(parents=True)
    for path in DATA.glob("*.yaml"):
        (files / path.name).write_bytes(path.read_bytes())
    spec = yaml.safe_load((files / "corpus.yaml").read_text())
    spec["held_out"] = spec["held_out"][:3]
    (files / "corpus.yaml").write_text(yaml.safe_dump(spec))
    build_corpus(files / "corpus.yaml", folder / "runs" / "ablations" / "corpus", processes=1)
    return folder


def test_there_are_the_four_questions():
    assert [path.stem for path in FILES] == ["dual_track", "icl", "speech_share", "text_prepend"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sides_differ_in_what_the_file_says_and_nothing_else(path, tmp_path):
    ablation = Ablation.read(path)
    first, second = (ablation.recipe(side, 1, tmp_path).model_dump(mode="json") for side in ablation.file.sides)
    assert first != second
    for field in ("name", "run", *{name.split(".")[0] for name in ablation.file.differs}):
        for recipe in (first, second):
            if field == "phases":
                for phase in recipe["phases"]:
                    assert f"phases.{phase['name']}.mixture" in ablation.file.differs or first == second
                    del phase["mixture"]
            else:
                del recipe[field]
    assert first == second
    spec = yaml.safe_load((DATA / "corpus.yaml").read_text())
    named = {name for side in ablation.file.sides.values() for name in side.sources.values()}
    for side in ablation.file.sides:
        named |= set(ablation.recipe(side, 1, tmp_path).source_names)
    assert named <= set(spec["sources"])


def test_icl_sides_read_as_many_reference_tokens(tmp_path):
    ablation = Ablation.read(DATA / "icl.yaml")
    for side in ablation.file.sides:
        recipe = ablation.recipe(side, 1, tmp_path)
        shares = [of_phase.get("reference", 0) for of_phase in token_shares(recipe, {})]
        assert sum(share * phase.tokens for share, phase in zip(shares, recipe.phases, strict=True)) == 120_000


def test_equal_sides_of_two_questions_share_a_run(tmp_path):
    asked = (("dual_track", "dual_track"), ("text_prepend", "by_segment"), ("icl", "at_annealing"))
    runs = [Ablation.read(DATA / f"{name}.yaml").recipe(side, 1, tmp_path).run for name, side in asked]
    assert runs[0] == runs[1] != runs[2]
    assert Ablation.read(DATA / "dual_track.yaml").recipe("dual_track", 2, tmp_path).run not in runs


def test_excerpts_are_pieces_of_their_songs(place):
    folder = place / "runs" / "ablations"
    codec = Vocabulary.load(DATA / "vocabulary.yaml").codec()
    spec = BuildSpec.read(place / "examples" / "ablations" / "corpus.yaml")
    assert spec.vocabulary.codec() == codec
    excerpt = next(read_manifest(folder / "excerpts" / "manifest.jsonl"))
    assert (excerpt.id, excerpt.duration_s) == ("auld_lang_syne.t0.e0", 4.0)
    assert [(one.text, one.start_frame, one.end_frame) for one in excerpt.segments] == [
        ("[verse]\nauld_lang_syne line 0\n\n", 0, 100),
        ("[verse]\nauld_lang_syne line 1\n\n", 100, 200),
    ]
    whole = {track: np.load(place / f"auld_lang_syne.{track}.npy") for track in excerpt.codes}
    for track, codes in whole.items():
        np.testing.assert_array_equal(load_codes(excerpt, track, codec), codes[:, 25:225])
    clip = list(read_manifest(folder / "clips" / "manifest.jsonl"))[1]
    assert (clip.id, clip.text, list(clip.codes)) == ("auld_lang_syne.t0.l1", "auld_lang_syne line 1", ["vocals"])
    np.testing.assert_array_equal(load_codes(clip, "vocals", codec), whole["vocals"][:, 125:210])
    swapped = next(read_manifest(folder / "swapped" / "manifest.jsonl"))
    assert swapped.id == excerpt.id and swapped.segments[0].text == "[verse]\nclementine line 0\n\n"
    np.testing.assert_array_equal(load_codes(swapped, "mix", codec), whole["mix"][:, 25:225])


def test_songs_without_lines_are_refused(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(InputError, match="manifest.jsonl: has no song with `lines` and their times"):
        write_excerpts(tmp_path / "manifest.jsonl", tmp_path, Vocabulary.load(DATA / "vocabulary.yaml").codec())


def test_one_runs_to_its_end_and_again_does_nothing(place, tmp_path, monkeypatch):
    file = place / "examples" / "ablations" / "icl.yaml"
    results = run_ablations([file], tmp_path, seeds=[1], overrides=TINY, processes=1, positions=16)
    found = json.loads((tmp_path / "icl.json").read_text())
    assert results == {"icl": found} and list(found["sides"]) == ["from_the_start", "at_annealing"]
    runs = {side: Path(found["sides"][side]["1"]["run"]) for side in found["sides"]}
    assert runs["from_the_start"] != runs["at_annealing"]
    ablation = Ablation.read(file, TINY)
    for side in runs:
        assert found["sides"][side]["1"]["tokens"] == 1280
        _assert_measures(found["sides"][side]["1"], ablation.recipe(side, 1, tmp_path), ablation.file.sides[side])
    for name, difference in found["differences"].items():
        first, second = (found["sides"][side]["1"][name] for side in runs)
        assert difference["value"] == pytest.approx(second - first, abs=1e-9)
    assert "by seed" in result_table(found)

    def never(*_, **__):
        raise AssertionError("trained or measured again")

    monkeypatch.setattr("megatron_music.training.run.train", never)
    monkeypatch.setattr("megatron_music.scaling.ablation_result.measure_side", never)
    assert run_ablations([file], tmp_path, seeds=[1], overrides=TINY, processes=1, positions=16) == results
    # Sources that were built again since: what is measured on, and what was trained on.
    for name, kind, what in (("reference_held_out", AssertionError, "measured again"),
                             ("reference", InputError, "reference: is not what it was when the run in ")):  # fmt: skip
        sidecar = place / "runs" / "ablations" / "corpus" / f"{name}.json"
        before = sidecar.read_text()
        sidecar.write_text(json.dumps(json.loads(before) | {"fingerprint": "another"}))
        with pytest.raises(kind, match=what):
            run_ablations([file], tmp_path, seeds=[1], overrides=TINY, processes=1, positions=16)
        sidecar.write_text(before)


def _assert_measures(found: dict, recipe: Recipe, side) -> None:
    """The losses by transformers' own forward pass, document after document."""
    import torch
    from transformers import LlamaForCausalLM

    network = LlamaForCausalLM.from_pretrained(recipe.run / "hf", dtype=torch.float32)
    start = Vocabulary.load(recipe.vocabulary).special("<EOD>")
    losses: dict[str, list[tuple[np.ndarray, int]]] = {}
    for field, name in side.sources.items():
        source = IndexedSource(recipe.corpus / name)
        for index in range(len(source)):
            ids, kinds = source.document(index)
            nats = []
            for first in range(0, len(ids), 256):
                window = torch.tensor([[start, *ids.tolist()][first : first + 257]])
                with torch.inference_mode():
                    logits = network(window[:, :-1]).logits[0]
                nats += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none").tolist()
            places = [at for at in range(len(ids)) if kinds[at] in AUDIO_KINDS]
            if field == "reference":  # 400 frames of two tracks are the song's; what comes before is the reference
                places = places[-400:]
            within = sum(place < 256 for place in places)
            losses.setdefault(field, []).append((np.array([nats[place] for place in places]), within))
    own = losses["held_out"]
    assert sum(len(nats) for nats, _ in own) == 1200
    total = sum(nats.sum() for nats, _ in own)
    assert found["nats_per_token"] == pytest.approx(total / 1200, rel=1e-4)
    assert found["nats_per_second"] == pytest.approx(total / 12, rel=1e-4)
    for field, sign in (("swapped", 1), ("reference", -1)):
        added = seconds = 0.0
        for (nats, within), (other, other_within) in zip(own, losses[field], strict=True):
            shared = min(within, other_within)
            added, seconds = added + other[:shared].sum() - nats[:shared].sum(), seconds + shared / 100
        if seconds:
            assert found[f"{field}_nats_per_second"] == pytest.approx(sign * added / seconds, abs=0.01)
        else:
            assert f"{field}_nats_per_second" not in found


def test_added_nats_are_of_tokens_in_both_first_contexts():
    kinds = np.array([Kind.TEXT, Kind.MIX, Kind.MIX, Kind.TEXT, Kind.MIX, Kind.SPECIAL, Kind.MIX])
    nats = np.array([9.0, 1, 2, 9, 4, 9, 8])
    own = AudioNats.of(nats, kinds, context=7)
    assert own.nats_N.tolist() == [1, 2, 4, 8] and own.in_first_context == 4
    other = AudioNats.of(2 * nats, kinds, context=5)
    assert other.in_first_context == 3 and other.added_to(own) == (7.0, 3)
    behind = AudioNats.of(nats, kinds, context=5, behind_reference=True)
    assert behind.nats_N.tolist() == [4, 8] and behind.in_first_context == 1


def test_differences_are_paired_by_song():
    def rows(shift: float) -> dict:
        songs = {f"{name}.t{take}.e0": {"nats": 100.0 * number + take + shift * 4, "tokens": 50, "seconds": 4.0}
                 for number, name in enumerate("abcdef") for take in range(2)}  # fmt: skip
        return {"songs": songs, "invalid_token_share": 0.5 + shift / 100}

    found = differences({1: rows(0.0), 2: rows(1.0)}, {1: rows(2.0), 2: rows(2.0)})
    # However much songs differ from each other, each is the same 2 and 1 nats a second dearer on the second side.
    assert found["nats_per_second"]["by_seed"] == pytest.approx([2.0, 1.0])
    assert [found["nats_per_second"][name] for name in ("value", "low", "high")] == pytest.approx([1.5] * 3)
    assert found["nats_per_token"]["value"] == pytest.approx(1.5 * 4 / 50)
    assert found["invalid_token_share"]["by_seed"] == pytest.approx([0.02, 0.01])
    assert list(found) == ["nats_per_token", "nats_per_second", "invalid_token_share"]


def test_differences_of_songs_that_have_the_measure():
    def side(shift: float) -> dict:
        row = {"nats": 80.0, "tokens": 40, "seconds": 4.0}
        lent = {"swapped": 2.0 * shift, "swapped_seconds": 4.0}
        # Another's lyrics for two songs; of `c` too little to tell, and of `d` on the first side alone.
        songs = {"a.e0": row | lent, "b.e0": row | lent, "c.e0": row | {"swapped": 0.0, "swapped_seconds": 0.0}}
        songs["d.e0"] = row | (lent if shift == 1 else {})
        return {1: {"songs": songs, "invalid_token_share": 0.0}}

    found = differences(side(1), side(3))["swapped_nats_per_second"]
    assert found == {"value": 1.0, "by_seed": [1.0], "low": 1.0, "high": 1.0}
    for of_side in (first := side(1), second := side(3)):
        del of_side[1]["songs"]["b.e0"]
    found = differences(first, second)
    assert found["swapped_nats_per_second"] == {"value": 1.0, "by_seed": [1.0]}
    assert found["nats_per_second"] == {"value": 0.0, "by_seed": [0.0], "low": 0.0, "high": 0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"differs": ["phases.constant.mixture"]}, "differs: the sides also differ in phases.annealing.mixture"),
        ({"differs": ["phases", "seed"]}, "differs: the sides do not differ in seed; take it out"),
        ({"sides": {"one": {"held_out": "x"}}}, "sides: an ablation has two sides, not 1"),
        ({"question": ""}, "question: found ''; write some text"),
        ({"expect": "x"}, "expect: unknown field; did you mean expected"),
        ({"recipe": "none.yaml"}, "none.yaml: no such file"),
    ],
)
def test_files_that_are_no_good(tmp_path, change, message):
    for path in DATA.glob("*.yaml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = yaml.safe_load((tmp_path / "icl.yaml").read_text()) | change
    (tmp_path / "icl.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as caught:
        Ablation.read(tmp_path / "icl.yaml")
    assert message in str(caught.value)


def test_what_is_missing_is_told_before_anything_is_trained(place, tmp_path):
    files = place / "examples" / "ablations"
    content = yaml.safe_load((files / "icl.yaml").read_text())
    content["sides"]["at_annealing"]["held_out"] = "nowhere"
    (files / "wrong.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="nowhere"):
        run_ablations([files / "wrong.yaml"], tmp_path, overrides=TINY, processes=1)
    assert not (tmp_path / "runs").exists()
    assert read_seeds("1, 2") == [1, 2] and read_seeds(None) is None
    for text in ("", "1,1", "a"):
        with pytest.raises(InputError, match="--seeds"):
            read_seeds(text)

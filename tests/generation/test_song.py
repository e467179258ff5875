"""A whole song: from two folders and files of a prompt to sound and a record that repeats it."""

import json

import numpy as np
import pytest
import soundfile
import yaml
from singing import generate
from typer.testing import CliRunner

from megatron_music.audio import vocoder as vocoder_module
from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.audio.files import resample, write_audio
from megatron_music.audio.loudness import integrated_loudness
from megatron_music.cli import app
from megatron_music.errors import InputError
from megatron_music.files import write_json
from megatron_music.generation.generate import song_in_words
from megatron_music.generation.reference import read_past
from megatron_music.generation.request import SongRequest, Stopped, Watch
from megatron_music.generation.sampling import SamplingSettings
from megatron_music.generation.song import Models, Studio, mixed
from megatron_music.vocabulary.vocabulary import Vocabulary

SETTINGS = SamplingSettings(min_new_tokens=20, max_new_tokens=60)
TEXTS = ["[verse]\nla la la\n\n", "[chorus]\nsing with me\n\n"]


@pytest.fixture(scope="module")
def codec() -> EmbeddedCodec:
    time = np.arange(32000, dtype=np.float32) / 16000
    tones = [np.sin(2 * np.pi * pitch * time * (1 + 0.1 * time)) * 0.3 for pitch in (110, 330, 880, 1760)]
    return EmbeddedCodec.fit([tone.astype(np.float32) for tone in tones], codebooks=4, codebook_size=16)


@pytest.fixture
def folders(make_model, codec) -> dict:
    folders = {"stage1": make_model("one", positions=1024), "stage2": make_model("two", positions=128, seed=1)}
    for folder in folders.values():
        codec.save(folder / "codec")
    return folders


@pytest.fixture
def prompt(folders, tmp_path) -> dict:
    (tmp_path / "lyrics.txt").write_text("[verse]\nla la la\n\n[chorus]\nsing with me\n")
    (tmp_path / "tags.txt").write_text("pop female\n")
    files = {"lyrics": tmp_path / "lyrics.txt", "tags": tmp_path / "tags.txt", "out": tmp_path / "song"}
    return folders | files | {"settings": SETTINGS}


def record_of(folder):
    return json.loads((folder / "song.json").read_text())


def tokens_of(folder):
    record = record_of(folder)
    return record["segments"], record["codes"]


def test_a_song_and_its_record(prompt, codec):
    generate(**prompt, seed=3)
    out, record = prompt["out"], record_of(prompt["out"])
    assert sorted(path.name for path in out.iterdir()) == ["accompaniment.wav", "mix.wav", "song.json", "vocals.wav"]
    assert (record["request"]["seed"], record["request"]["tags"]) == (3, "pop female")
    assert (record["codec"], record["vocabulary"]) == ("embedded", "tiny")
    assert record["settings"]["top_k"] == 50 and record["settings"]["max_new_tokens"] == 60
    assert [segment["text"] for segment in record["segments"]] == record["request"]["lyrics"] == TEXTS
    audio = np.array([id for segment in record["segments"] for id in segment["audio"]])
    assert record["frames"] == len(audio) // 2 == record["segments"][-1]["end_frame"]
    stems = {}
    for index, name in enumerate(("vocals", "accompaniment")):
        codes_KT = np.array(record["codes"][name])
        assert codes_KT.shape == (4, record["frames"])
        np.testing.assert_array_equal(codes_KT[0], audio[index::2] - 306)
        stems[name], rate = soundfile.read(out / f"{name}.wav", dtype="float32")
        assert soundfile.info(out / f"{name}.wav").subtype == "PCM_24"
        assert rate == 16000 and len(stems[name]) == record["frames"] * 320
        np.testing.assert_allclose(stems[name], codec.decode(codes_KT) * record["gain"], atol=2e-7)
    mix, _ = soundfile.read(out / "mix.wav", dtype="float32")
    np.testing.assert_allclose(mix, stems["vocals"] + stems["accompaniment"], atol=4e-7)


def test_a_seed_repeats_the_song_and_another_does_not(prompt):
    songs = []
    for seed in (1, 1, 2):
        generate(**prompt, seed=seed)
        songs.append((tokens_of(prompt["out"]), (prompt["out"] / "mix.wav").read_bytes()))
    assert songs[0] == songs[1]
    assert songs[0][0] != songs[2][0]


def test_only_so_many_segments_are_sung_but_all_lyrics_are_read(prompt):
    generate(**prompt, segments=1)
    one = record_of(prompt["out"])
    generate(**prompt)
    both = record_of(prompt["out"])
    assert len(one["segments"]) == 1 and one["header"] == both["header"]
    assert one["segments"][0] == both["segments"][0]


def test_a_song_is_repeated_from_its_json(prompt, tmp_path, codec):
    """With a reference, a past, guidance and all: from the file alone, and from moved models that are the same."""
    generate(**prompt, segments=1)
    sound = codec.decode(np.random.default_rng(0).integers(0, 16, (4, 80)).astype(np.int16))
    write_audio(tmp_path / "reference.flac", sound, 16000)
    changed = prompt | {"out": tmp_path / "second"}
    generate(
        **changed, seed=8, past=prompt["out"] / "song.json", reference=[tmp_path / "reference.flac"],
        reference_s=(0.2, 1.4), loudness_lufs=-20.0,
    )  # fmt: skip
    again, moved = tmp_path / "again", tmp_path / "moved"
    generate(again, repeat=tmp_path / "second" / "song.json", loudness_lufs=-20.0)
    assert (again / "song.json").read_bytes() == (tmp_path / "second" / "song.json").read_bytes()
    assert (again / "mix.wav").read_bytes() == (tmp_path / "second" / "mix.wav").read_bytes()
    prompt["stage1"].rename(tmp_path / "elsewhere")
    generate(moved, repeat=again / "song.json", stage1=tmp_path / "elsewhere")
    assert tokens_of(moved) == tokens_of(again)
    with pytest.raises(InputError, match="two: is not the stage1 model that sang"):
        generate(moved, repeat=again / "song.json", stage1=prompt["stage2"])
    with pytest.raises(InputError, match="--repeat: a song is repeated as it was"):
        generate(moved, repeat=again / "song.json", lyrics=prompt["lyrics"])
    with pytest.raises(InputError, match="--repeat: a song is repeated as it was; leave out prompt and seed"):
        generate(moved, repeat=again / "song.json", seed=3)
    with pytest.raises(InputError, match="--loudness: nan is no loudness"):
        generate(moved, repeat=again / "song.json", loudness_lufs=float("nan"))


def test_a_reference_is_cut_out_of_the_codes_of_the_whole_file(folders, codec, tmp_path):
    studio = Studio(Models(**folders))
    tracks = np.random.default_rng(0).integers(0, 16, (2, 4, 100)).astype(np.int16)
    paths = [tmp_path / "vocals.wav", tmp_path / "accompaniment.wav"]
    for path, codes_KT in zip(paths, tracks, strict=True):
        write_audio(path, codec.decode(codes_KT), 16000, "FLOAT")
    whole = [codec.encode(codec.decode(codes_KT))[0] for codes_KT in tracks]
    dual = studio.reference(paths, 0.5, 1.8)
    for found, expected in zip(dual.tracks, whole, strict=True):
        np.testing.assert_array_equal(found, expected[25:90])
    assert dual.source == "vocals.wav, accompaniment.wav, 0.5 s to 1.8 s"
    (single,) = studio.reference(paths[:1]).tracks
    np.testing.assert_array_equal(single, whole[0])
    np.save(tmp_path / "codes.npy", tracks[0])
    (given,) = studio.reference([tmp_path / "codes.npy"], 0, 1).tracks
    np.testing.assert_array_equal(given, tracks[0][0, :50])


def test_hours_in_a_small_file_are_never_read(folders, tmp_path, monkeypatch):
    write_audio(tmp_path / "hours.flac", np.zeros(7200 * 100, np.float32), 100)
    monkeypatch.setattr("megatron_music.generation.reference.read_audio", None)
    with pytest.raises(InputError, match="hours.flac: lasts 120 minutes; cut it to 20"):
        Studio(Models(**folders)).reference([tmp_path / "hours.flac"])


def test_a_song_of_a_manifest_is_gone_on_with(prompt, tmp_path):
    for name in ("v", "a"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(len(name)).integers(0, 16, (4, 100)).astype(np.int16))
    segments = [
        {"line_content": "[verse]\nla\n\n", "codec_frame_start": 10, "codec_frame_end": 40},
        {"line_content": "[chorus]\nha\n\n", "codec_frame_start": 40, "codec_frame_end": 90},
    ]
    line = {
        "id": "one", "genres": "folk", "vocals_codec": "v.npy", "instrumental_codec": "a.npy",
        "splitted_lyrics": {"segmented_lyrics": segments},
    }  # fmt: skip
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    hashed = tmp_path / "run.jsonl#2" / "manifest.jsonl"
    hashed.parent.mkdir()
    line |= {"vocals_codec": "../v.npy", "instrumental_codec": "../a.npy"}
    ids = ("one", "Cafe\u0301 #1.jsonl#2")
    hashed.write_text("".join(json.dumps(line | {"id": id}) + "\n" for id in ids))
    past = f"{tmp_path}/manifest.jsonl#one"
    for manifest in (past, f"{hashed}#one", f"{hashed}#Caf\u00e9 #1.jsonl#2"):
        tags, sections = read_past(manifest, Vocabulary.load(prompt["stage1"] / "vocabulary.yaml").codec())
        assert tags == "folk" and [section.codes_2T.shape[1] for section in sections] == [30, 50]
    generate(**prompt | {"tags": None}, past=past, after=1)
    record = record_of(prompt["out"])
    assert record["request"]["tags"] == "folk"
    assert record["segments"][0]["end_frame"] == 30 and len(record["segments"]) == 2
    assert record["codes"]["vocals"][0][:30] == np.load(tmp_path / "v.npy")[0, 10:40].tolist()
    for name, after, message in (
        ("#two", None, "has no song 'two'"),
        ("#one", 3, "has 2 sections, 3 were asked for"),
        ("#one", None, "--continue: 2 of 2 sections have been sung already"),
    ):
        with pytest.raises(InputError, match=message):
            generate(**prompt, past=f"{tmp_path}/manifest.jsonl{name}", after=after)


def test_a_song_without_lyrics_an_instrumental_one_and_a_single_track(prompt):
    without = prompt | {"lyrics": None}
    generate(**without)
    assert record_of(prompt["out"])["request"]["lyrics"] == [] and (prompt["out"] / "vocals.wav").is_file()
    generate(**without, tracks="mix")
    record = record_of(prompt["out"])
    assert sorted(path.name for path in prompt["out"].iterdir()) == ["mix.wav", "song.json"]
    assert np.array(record["codes"]["mix"]).shape == (4, record["frames"])
    for texts in (prompt, without):
        generate(**texts, instrumental=True)
        record = record_of(prompt["out"])
        assert sorted(path.name for path in prompt["out"].iterdir()) == ["mix.wav", "song.json"]
        assert set(np.ravel(record["codes"]["vocals"])) == {0}  # the embedded codec's code of silence
        assert len(record["codes"]["accompaniment"]) == 4


def test_several_songs_at_once_are_those_of_their_seeds(prompt):
    written = generate(**prompt, seed=5, songs=3)
    assert [folder.name for folder in written] == ["01", "02", "03"]
    together = [tokens_of(folder) for folder in written]
    for seed, tokens in zip((5, 6, 7), together, strict=True):
        generate(**prompt | {"out": prompt["out"].parent / "alone"}, seed=seed)
        assert tokens_of(prompt["out"].parent / "alone") == tokens
    with pytest.raises(InputError, match="--songs: 0 at once"):
        generate(**prompt, songs=0)


def test_what_a_song_lacks_is_told(tmp_path):
    def told(**changes) -> str:
        sections = [{"audio": [0] * count} for count in changes.pop("tokens", (1000, 2998, 998))]
        record = {"segments": sections, "request": {"lyrics": ["a", "b", "c", "d"], "past": [], "tracks": "dual"},
                  "settings": {"max_new_tokens": 2999}, "duration_s": 60.0, "gain": 1.0, "target_lufs": None,
                  "loudness_lufs": -20.0}  # fmt: skip
        write_json(tmp_path / "song.json", record | changes)
        return song_in_words(tmp_path).removeprefix(f"{tmp_path}: ")

    assert told(tokens=(1000, 2996)) == "60.0 s, 2 of 4 sections"
    assert told() == "60.0 s, 3 of 4 sections; section 2 cut at --max-tokens 2999"
    alone = {"lyrics": [], "past": [], "tracks": "mix"}
    assert told(tokens=(2998,), request=alone) == "60.0 s, 1 of 1 sections"
    assert "; section 1 cut at" in told(tokens=(2999,), request=alone)
    past = {"lyrics": ["a", "b"], "past": [{}], "tracks": "dual"}
    assert told(tokens=(2998, 10), request=past) == "60.0 s, 2 of 2 sections"
    assert told(gain=0.5, tokens=(10,)).endswith("; turned down by 6.0 dB, as it would have clipped")
    assert told(gain=0.5, tokens=(10,), target_lufs=-20.05) == "60.0 s, 1 of 4 sections"
    assert told(tokens=(10,), target_lufs=-9.0).endswith("; -20.0 LUFS, as it would have clipped at -9")
    assert told(tokens=(10,), target_lufs=-9.0, loudness_lufs=None) == "60.0 s, 1 of 4 sections"


@pytest.mark.parametrize("file_format, subtype", [("wav", "PCM_24"), ("flac", "PCM_24"), ("mp3", "MPEG_LAYER_III")])
def test_formats_and_loudness(prompt, file_format, subtype):
    generate(**prompt, file_format=file_format, loudness_lufs=-30.0)
    info = soundfile.info(prompt["out"] / f"mix.{file_format}")
    assert (info.subtype, info.samplerate) == (subtype, 16000)
    mix, rate = soundfile.read(prompt["out"] / f"mix.{file_format}")
    assert integrated_loudness(mix, rate) == pytest.approx(-30.0, abs=0.3 if file_format == "mp3" else 0.01)
    assert record_of(prompt["out"])["loudness_lufs"] == pytest.approx(-30.0, abs=0.01)
    with pytest.raises(InputError, match="--format: 'ogg' can't be written"):
        generate(**prompt, file_format="ogg")


def test_folders_without_vocabulary_and_tokenizer_as_they_are_released(prompt, tmp_path, tiny_vocabulary):
    """YuE's embedding tables have one row for each id, and none of the padding."""
    from transformers import LlamaForCausalLM

    names = {"vocabulary": tmp_path / "words.yaml", "tokenizer": tmp_path / "words.model"}
    names["vocabulary"].write_text(yaml.safe_dump(tiny_vocabulary))
    (prompt["stage1"] / "tokenizer.model").rename(names["tokenizer"])
    generate(**prompt, tokenizer=names["tokenizer"])
    expected = tokens_of(prompt["out"])
    for stage in ("stage1", "stage2"):
        (prompt[stage] / "vocabulary.yaml").unlink()
    with pytest.raises(InputError, match="one: has no vocabulary.yaml; name it with --vocabulary"):
        generate(**prompt)
    with pytest.raises(InputError, match="one: has no tokenizer.model; name it with --tokenizer"):
        generate(**prompt, vocabulary=names["vocabulary"])
    generate(**prompt, **names)
    assert tokens_of(prompt["out"]) == expected
    network = LlamaForCausalLM.from_pretrained(prompt["stage1"])
    network.resize_token_embeddings(tiny_vocabulary["size"])
    network.save_pretrained(prompt["stage1"])
    generate(**prompt, **names)
    assert record_of(prompt["out"])["segments"] != []


def test_callbacks_reach_both_stages_and_a_stop_writes_nothing(folders):
    told = {"token": 0, "segment": [], "frame": []}
    watch = Watch(
        on_token=lambda *_: told.update(token=told["token"] + 1),
        on_segment=lambda *place: told["segment"].append(place),
        on_frame=lambda *place: told["frame"].append(place),
    )
    studio = Studio(Models(**folders), keep_networks=True)
    (recording,) = studio.make([SongRequest("pop", tuple(TEXTS))], SETTINGS, watch=watch)
    assert told["segment"] == [(0, 0, 2), (0, 1, 2)]
    assert told["token"] == sum(len(segment["audio"]) for segment in recording.record["segments"])
    assert told["frame"] == [(frame + 1, 25) for frame in range(25)]
    watch.on_frame = lambda *_: watch.stop.set()
    with pytest.raises(Stopped):
        studio.make([SongRequest("pop", tuple(TEXTS))], SETTINGS, watch=watch)


def test_with_vocoders_the_song_has_their_rate_and_the_codecs_lows(folders, monkeypatch):
    """The path through the vocoders, with one that writes two tones; the network has tests of its own."""
    studio = Studio(Models(**folders))

    class Tone:
        hop_samples = 882

    def vocode(vocoder, codec, codes_KT):
        time = np.arange(codes_KT.shape[1] * 882) / 44100
        return (0.1 * np.sin(2 * np.pi * 12000 * time) + 0.1 * np.sin(2 * np.pi * 500 * time)).astype(np.float32)

    monkeypatch.setattr(vocoder_module, "vocode", vocode)
    (plain,) = studio.make([SongRequest("pop", tuple(TEXTS))], SETTINGS)
    studio.vocoders = {"vocals": Tone(), "accompaniment": Tone()}
    (recording,) = studio.make([SongRequest("pop", tuple(TEXTS))], SETTINGS)
    assert recording.sample_rate == recording.record["sample_rate"] == 44100
    assert recording.record["codes"] == plain.record["codes"]
    mix = recording.sounds["mix"]
    assert len(mix) == recording.record["frames"] * 882
    np.testing.assert_allclose(mix, recording.sounds["vocals"] + recording.sounds["accompaniment"], atol=1e-6)
    spectrum = np.abs(np.fft.rfft(mix))
    peak = np.fft.rfftfreq(len(mix), 1 / 44100)[
        np.argmax(np.where(np.arange(len(spectrum)) > len(mix) / 4, spectrum, 0))
    ]
    assert peak == pytest.approx(12000, abs=30)
    # Below the crossover there is the codec's sound, not the vocoder's.
    low = resample(plain.sounds["mix"] / plain.record["gain"] * recording.record["gain"], 16000, 44100)
    lows = np.abs(np.fft.rfft(low))[100:3000]
    np.testing.assert_allclose(spectrum[100:3000], lows, atol=0.02 * lows.max())


def test_vocoders_of_another_codec_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="none: no such folder"):
        Studio(Models(**folders, vocoder=tmp_path / "none"))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda prompt: prompt["lyrics"].write_text("[ti:la]\n"),
            "lyrics.txt: holds no lyrics; write sections such as",
        ),
        (
            lambda prompt: prompt.update(translation="third"),
            "--translation: 'third' is not known; choose first, second",
        ),
        (lambda prompt: prompt["tags"].write_text(""), "tags.txt: is empty"),
        (lambda prompt: (prompt["stage1"] / "config.json").unlink(), "one: has no config.json"),
        (lambda prompt: (prompt["stage2"] / "vocabulary.yaml").unlink(), "two: has no vocabulary.yaml"),
        (lambda prompt: prompt.update(stage2=prompt["stage1"].parent / "none"), "none: no such model folder"),
        (lambda prompt: prompt.update(stage2=None), "--stage2: is missing"),
        (lambda prompt: prompt.update(tags=None), "--tags: is missing"),
        (lambda prompt: prompt.update(codec="xcodec"), "vocabulary tiny: has no codec xcodec"),
        (lambda prompt: prompt.update(segments=0), "segments: 0 segments make no song"),
        (lambda prompt: prompt.update(windows_at_once=0), "windows_at_once"),
        (lambda prompt: prompt.update(weights=prompt["out"]), "song: no such folder"),
    ],
)
def test_what_makes_no_song_is_told_in_one_line_before_anything_is_sung(prompt, change, message):
    change(prompt)
    with pytest.raises(InputError, match=message) as caught:
        generate(**prompt)
    assert "\n" not in str(caught.value)
    assert not prompt["out"].exists()


def test_models_without_a_codec_name_the_option(prompt, codec, tmp_path):
    for stage in ("stage1", "stage2"):
        for file in (prompt[stage] / "codec").iterdir():
            file.unlink()
        (prompt[stage] / "codec").rmdir()
    with pytest.raises(InputError, match="--weights"):
        generate(**prompt)
    codec.save(tmp_path / "weights")
    generate(**prompt, weights=tmp_path / "weights", segments=1)
    assert (prompt["out"] / "mix.wav").is_file()


def test_a_codec_of_another_size_is_refused(prompt, tmp_path):
    time = np.arange(32000, dtype=np.float32) / 16000
    other = EmbeddedCodec.fit([np.sin(900 * time * time).astype(np.float32)], codebooks=2, codebook_size=8)
    other.save(tmp_path / "other")
    with pytest.raises(InputError, match="other: has codebooks of 8 codes, the models' vocabulary of 16"):
        generate(**prompt, weights=tmp_path / "other")


def test_foreign_folders_are_not_replaced(prompt):
    prompt["out"].mkdir()
    (prompt["out"] / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and holds no song.json"):
        generate(**prompt)
    assert (prompt["out"] / "notes.txt").read_text() == "mine"


def test_the_mix_is_the_sum_of_the_stems():
    mix = mixed([np.array([0.5, -0.2, 0.1]), np.array([0.75, 0.2])])
    np.testing.assert_allclose(mix, [1.25, 0.0], atol=1e-6)
    assert mix.dtype == np.float32


def test_the_verb_sings_hints_and_ends_in_one_line(prompt, tmp_path):
    (tmp_path / "known.txt").write_text("pop\nfemale vocal\n")
    options = [
        "--max-tokens",
        "30",
        "--min-tokens",
        "10",
        "--segments",
        "1",
        "--known-tags",
        str(tmp_path / "known.txt"),
    ]
    arguments = [part for name in ("stage1", "stage2", "lyrics", "tags") for part in (f"--{name}", str(prompt[name]))]
    result = CliRunner().invoke(app, ["generate", str(prompt["out"]), *arguments, *options])
    assert result.exit_code == 0, result.output
    hint = "hint: tags: 'female' is not among the known ones; did you mean 'female vocal'?\n"
    assert result.stderr == hint
    assert result.stdout == song_in_words(prompt["out"]) + "\n"
    assert record_of(prompt["out"])["settings"]["max_new_tokens"] == 30
    again = CliRunner().invoke(app, ["generate", str(tmp_path / "again"), "--repeat", str(prompt["out"] / "song.json")])
    assert again.exit_code == 0, again.output
    assert tokens_of(tmp_path / "again") == tokens_of(prompt["out"])
    (tmp_path / "lyrics.lrc").write_text("[00:01.00][Verse 2: Anna]la (x2)\n[00:01.00]na\n")
    lrc = [str(tmp_path / "lyrics.lrc") if part == str(prompt["lyrics"]) else part for part in arguments]
    timed = CliRunner().invoke(app, ["generate", str(tmp_path / "timed"), *lrc, "--translation", "second", *options])
    assert record_of(tmp_path / "timed")["request"]["lyrics"] == ["[verse]\nna\n\n"]
    assert timed.stderr.split("hint: ")[1:] == [
        f"{tmp_path}/lyrics.lrc: line 1: '(x2)' is left out; write what is sung again once more\n",
        f"{tmp_path}/lyrics.lrc: line 1: 'la' has the time of another line, as a translation has, and is left out; "
        "see --translation\n",
        hint.removeprefix("hint: "),
    ]
    wrong = CliRunner().invoke(app, ["generate", str(tmp_path / "wrong"), *arguments, "--reference", "nowhere.mp3"])
    assert isinstance(wrong.exception, InputError) and "nowhere.mp3: no such file" in str(wrong.exception)

"""Tags with a Qwen2-Audio of random weights, saved to disk and loaded as a real one is; and the parser on answers."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from megatron_music.audio.files import write_audio
from megatron_music.errors import InputError
from megatron_music.songs.annotators import load_annotator
from megatron_music.songs.annotators.tags import parse_answer, read_known_tags
from megatron_music.songs.song import Rejected, Song
from tokenizers import Tokenizer, models, pre_tokenizers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
FORM = "Genre: pop, rock\nInstrument: piano\nMood: happy\nVocal gender: female\nVocal timbre: bright vocal"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder as the hub has it, of a model with two layers; its tokenizer knows bytes."""
    folder = tmp_path_factory.mktemp("qwen2_audio")
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL})
    extractor = WhisperFeatureExtractor(feature_size=16, sampling_rate=16000, chunk_length=30)
    Qwen2AudioProcessor(extractor, fast).save_pretrained(folder)
    config = Qwen2AudioConfig(
        audio_config={"num_mel_bins": 16, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2,
                      "encoder_ffn_dim": 32, "max_source_positions": 1500},
        text_config={"model_type": "qwen2", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                     "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(fast),
                     "bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
        audio_token_index=fast.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture
def song(tmp_path) -> Song:
    times_s = np.arange(3 * 16000) / 16000
    write_audio(tmp_path / "a.wav", (0.3 * np.sin(2 * np.pi * 330 * times_s)).astype(np.float32), 16000)
    return Song("a", audio={"mix": "a.wav"}, folder=tmp_path)


def test_a_model_from_disk_answers_the_same_every_time(weights, song, tmp_path):
    annotators = [load_annotator("tags", {"weights": str(weights), "tokens": "12"}) for _ in range(2)]
    samples = np.random.default_rng(0).normal(0, 0.1, 16000 * 40).astype(np.float32)
    first, second = (annotator.answer(samples) for annotator in annotators)
    assert first == second and len(first) > 0
    # The excerpt is the middle: what lies outside of its 30 s does not count.
    samples[: 16000 * 4] = samples[16000 * 36 :] = 0
    assert annotators[0].answer(samples) == first
    # What a network of random weights says is in no field.
    assert annotators[0].annotate(song, tmp_path) == song


def test_the_answer_fills_empty_fields(weights, song, tmp_path, monkeypatch):
    annotator = load_annotator("tags", {"weights": str(weights)})
    monkeypatch.setattr(annotator, "answer", lambda samples: FORM)
    tagged = annotator.annotate(song, tmp_path)
    assert tagged.genres == "pop, rock, piano, happy"
    assert tagged.extra == {"vocal_gender": "female", "vocal_timbre": "bright vocal"}
    song.genres, song.extra = "folk", {"vocal_gender": "male"}
    kept = annotator.annotate(song, tmp_path)
    assert (kept.genres, kept.extra) == ("folk", {"vocal_gender": "male", "vocal_timbre": "bright vocal"})
    annotator = load_annotator("tags", {"weights": str(weights), "overwrite": "true"})
    monkeypatch.setattr(annotator, "answer", lambda samples: FORM)
    assert annotator.annotate(kept, tmp_path) == tagged


def test_a_song_that_has_all_tags_is_not_heard(weights, tmp_path):
    song = Song("a", genres="folk", extra={"vocal_gender": "male", "vocal_timbre": "dark vocal"}, folder=tmp_path)
    annotator = load_annotator("tags", {"weights": str(weights)})
    assert annotator.annotate(song, tmp_path) == song
    with pytest.raises(Rejected, match="audio_missing"):
        annotator.annotate(Song("a", folder=tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("answer", "tags"),
    [
        (FORM, (["pop", "rock"], ["piano"], ["happy"], ["female"], ["bright vocal"])),
        (
            "**Genre:** Hip-Hop/Soul\n- **Instruments:** drums, bass and Drums.\n- **Mood:** dark; calm\n"
            "- **Vocal Gender:** Male\n- **Vocal timbre:** none",
            (["hip-hop", "soul"], ["drums", "bass"], ["dark", "calm"], ["male"], []),
        ),
        (
            "Mood: sad. Genre: drum and bass, rock and pop",
            (["drum & bass", "rock", "pop"], [], ["sad"], [], []),
        ),
        (
            "Genre:\nfolk\nGender: unknown\nTimbre: The voice is warm and close to the microphone",
            (["folk"], [], [], [], []),
        ),
        ("This is a lovely song.", ([], [], [], [], [])),
        ("", ([], [], [], [], [])),
    ],
)
def test_answers_are_read_whatever_their_form(answer, tags):
    assert tuple(parse_answer(answer).values()) == tags


def test_only_known_tags_are_kept_in_their_spelling():
    known = {"genre": ["Pop", "pop", "hip hop", "R&B"], "instrument": ["Electric Guitar"], "gender": ["female"]}
    answer = "Genre: POP, Hip-Hop, r&b, zydeco\nInstrument: electric guitar, kazoo\nMood: odd\nVocal gender: robot"
    assert parse_answer(answer, known) == {
        "genre": ["pop", "hip hop", "R&B"],
        "instrument": ["Electric Guitar"],
        "mood": ["odd"],
        "gender": [],
        "timbre": [],
    }


def test_the_published_list_of_tags_is_read_as_it_is(yue_data):
    known = read_known_tags(yue_data / "top_200_tags.json")
    assert set(known) == {"genre", "instrument", "mood", "gender", "timbre"}
    assert parse_answer(FORM, known)["timbre"] == ["bright vocal"]


def test_bad_lists_and_weights_are_told_in_one_line(weights, tmp_path):
    path = tmp_path / "known.json"
    path.write_text("[]")
    with pytest.raises(InputError, match="has no lists of tags"):
        read_known_tags(path)
    path.write_text('{"genre": "pop"}')
    with pytest.raises(InputError, match="genre: is not a list of texts"):
        read_known_tags(path)
    with pytest.raises(InputError, match="needs weights .* weights=Qwen/Qwen2-Audio-7B-Instruct"):
        load_annotator("tags")
    with pytest.raises(InputError, match="no such file or folder"):
        load_annotator("tags", {"weights": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="no such file"):
        load_annotator("tags", {"weights": str(tmp_path)})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="model_type is 'llama', not qwen2_audio"):
        load_annotator("tags", {"weights": str(tmp_path)})
    (tmp_path / "config.json").write_text((weights / "config.json").read_text())
    with pytest.raises(InputError, match="model.safetensors: no such file, nor"):
        load_annotator("tags", {"weights": str(tmp_path)})

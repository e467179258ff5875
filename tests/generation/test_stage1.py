"""Stage 1 against `generate()` called the way the published program calls it, and its rules on their own."""

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from megatron_music.documents.document import DocumentContext
from megatron_music.documents.lyrics_to_song import LyricsOptions, documents
from megatron_music.errors import InputError
from megatron_music.generation.models import ModelFolder
from megatron_music.generation.sampling import SamplingSettings
from megatron_music.generation.stage1 import Singer, header_text, keep_window
from megatron_music.songs.song import Segment, Song

SEGMENTS = ["[verse]\nla la la\n\n", "[chorus]\nsing with me\n\n", "[outro]\n\n"]
GREEDY = SamplingSettings(temperature=0, min_new_tokens=10, max_new_tokens=40)


class Grammatical(LogitsProcessor):
    """Lets `generate()` write whole frames of codebook-0 ids, and `<EOA>` behind them."""

    def __init__(self, grammar, prompt_length):
        self.grammar, self.prompt_length = grammar, prompt_length

    def __call__(self, input_ids, scores):
        mask = torch.from_numpy(self.grammar.mask(input_ids.shape[1] - self.prompt_length).copy())
        return scores.masked_fill(~mask, -torch.inf)


def open_singer(folder, settings=GREEDY, seed=0):
    opened = ModelFolder.open(folder)
    return Singer(opened, opened.network(), settings, seed)


def sung_by_generate(folder, tags, segments, settings):
    """The published program's loop: the whole prefix is handed to `generate()` for every segment."""
    singer = open_singer(folder)
    network, grammar, encode = ModelFolder.open(folder).network(), singer.grammar, singer.tokenizer.encode
    ids, audio = encode(header_text(tags, segments)), []
    for index, text in enumerate(segments):
        ids += encode("[start_of_segment]") + encode(text) + grammar.opening
        scale = settings.guidance_first if index == 0 else settings.guidance_rest
        output = network.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            min_new_tokens=settings.min_new_tokens,
            max_new_tokens=settings.max_new_tokens,
            repetition_penalty=settings.repetition_penalty,
            guidance_scale=scale,
            eos_token_id=grammar.end,
            pad_token_id=grammar.end,
            logits_processor=LogitsProcessorList([Grammatical(grammar, len(ids))]),
        )[0].tolist()
        new = [id for id in output[len(ids) :] if id != grammar.end]
        audio.append(new)
        ids += new + [grammar.end] + encode("[end_of_segment]")
    return audio


@pytest.mark.parametrize("scales", [(1.5, 1.2), (1.0, 1.2), (1.0, 1.0)])
@pytest.mark.parametrize("seed", [1, 4])
def test_greedy_tokens_equal_generate_on_the_whole_prefix(make_model, scales, seed):
    # Without guidance `generate()` penalises raw logits; ours penalises log-probabilities throughout.
    penalty = 1.1 if scales == (1.5, 1.2) else 1.0
    settings = SamplingSettings(
        temperature=0, min_new_tokens=10, max_new_tokens=40, repetition_penalty=penalty,
        guidance_first=scales[0], guidance_rest=scales[1],
    )  # fmt: skip
    folder = make_model("stage1", seed=seed)
    song = open_singer(folder, settings).sing("pop", SEGMENTS)
    assert [segment.audio for segment in song.segments] == sung_by_generate(folder, "pop", SEGMENTS, settings)


def test_every_token_is_read_once_and_in_training_order(make_model, monkeypatch):
    singer = open_singer(make_model("stage1"), SamplingSettings(min_new_tokens=4, max_new_tokens=20))
    read = {0: [], 1: []}
    plain = singer.decoder.read

    def recording(ids_RT, first_row=0):
        for row, ids in enumerate(ids_RT, start=first_row):
            read[row] += ids
        return plain(ids_RT, first_row)

    monkeypatch.setattr(singer.decoder, "read", recording)
    song = singer.sing("pop", SEGMENTS)
    encode, grammar = singer.tokenizer.encode, singer.grammar
    expected = encode("Generate music from the given lyrics segment by segment.\n[Genre] pop\n" + "\n".join(SEGMENTS))
    unconditional = []
    for text, segment in zip(SEGMENTS, song.segments, strict=True):
        expected += encode("[start_of_segment]") + encode(text) + grammar.opening + segment.audio
        expected += [grammar.end] + encode("[end_of_segment]")
        unconditional += grammar.opening[-1:] + segment.audio[: 20 if len(segment.audio) < 20 else 19]
    last_unread = len(song.segments[-1].closing) + (len(song.segments[-1].audio) == 20)
    assert read[0] == expected[:-last_unread]
    assert read[1] == unconditional
    assert song.header + [id for segment in song.segments for id in segment.ids] == expected


def test_a_sung_song_is_the_training_document_of_its_own_codes(make_model):
    singer = open_singer(make_model("stage1"), SamplingSettings(min_new_tokens=4, max_new_tokens=20))
    sung = singer.sing("pop, female", SEGMENTS)
    frames = np.cumsum([0] + [len(segment.audio) // 2 for segment in sung.segments])
    segments = [
        Segment(text, int(start), int(end)) for text, start, end in zip(SEGMENTS, frames, frames[1:], strict=False)
    ]
    codes = {name: sung.codes_T(singer.grammar, index)[None] for index, name in enumerate(("vocals", "accompaniment"))}
    song = Song("sung", codes={name: "in memory" for name in codes}, genres="pop, female", segments=segments)
    context = DocumentContext(
        singer.grammar.vocabulary, singer.tokenizer, singer.grammar.codec, lambda song, track, codec: codes[track]
    )
    options = LyricsOptions(min_segment_s=0, code_rate_tolerance=None)
    (document,) = documents(song, context, np.random.default_rng(0), options)
    ids = sung.header + [id for segment in sung.segments for id in segment.ids]
    assert document.ids.tolist() == [*ids, singer.grammar.vocabulary.special("<EOD>")]


def test_sampled_audio_is_whole_frames_of_the_codec_between_the_limits(make_model):
    settings = SamplingSettings(min_new_tokens=6, max_new_tokens=31)
    singer = open_singer(make_model("stage1"), settings)
    song = singer.sing("pop", SEGMENTS)
    for segment in song.segments:
        assert len(segment.audio) % 2 == 0 and 6 <= len(segment.audio) <= 31
        assert all(306 <= id < 322 for id in segment.audio)
    audio = [id for segment in song.segments for id in segment.audio]
    np.testing.assert_array_equal(song.codes_T(singer.grammar, 0), np.array(audio[0::2]) - 306)
    np.testing.assert_array_equal(song.codes_T(singer.grammar, 1), np.array(audio[1::2]) - 306)


def test_seeds_repeat_and_differ(make_model):
    folder = make_model("stage1")
    settings = SamplingSettings(min_new_tokens=10, max_new_tokens=40)
    songs = [open_singer(folder, settings, seed).sing("pop", SEGMENTS).segments for seed in (5, 5, 6)]
    assert songs[0] == songs[1] != songs[2]


@pytest.mark.parametrize("positions", [48, 96, 200])
def test_a_song_longer_than_the_positions_is_sung_to_the_end(make_model, positions):
    settings = SamplingSettings(min_new_tokens=90, max_new_tokens=120)
    folder = make_model("stage1", positions=positions)
    song = open_singer(folder, settings).sing("pop", SEGMENTS)
    assert [90 <= len(segment.audio) <= 120 for segment in song.segments] == [True] * 3
    assert open_singer(folder, settings).sing("pop", SEGMENTS).segments == song.segments


def test_tokens_after_a_rereading_follow_from_the_kept_context(make_model, monkeypatch):
    """The first id after the window has moved is the most probable one behind exactly the kept context."""
    settings = SamplingSettings(
        temperature=0, repetition_penalty=1, guidance_first=1, guidance_rest=1, min_new_tokens=90, max_new_tokens=120
    )
    folder = make_model("stage1", positions=96)
    singer = open_singer(folder, settings)
    contexts = []
    plain = singer.decoder.read

    def recording(ids_RT, first_row=0):
        if singer.decoder.lengths[0] == 0:
            contexts.append(list(ids_RT[0]))
        return plain(ids_RT, first_row)

    monkeypatch.setattr(singer.decoder, "read", recording)
    segment = singer.sing("pop", SEGMENTS[:1]).segments[0]
    audio, network = segment.audio, ModelFolder.open(folder).network()
    moved = contexts[1:]
    assert moved
    for context in moved:
        assert context[: len(segment.opening)] == segment.opening
        tail = len(context) - len(segment.opening)
        place = next(i for i in range(tail, len(audio)) if audio[i - tail : i] == context[-tail:])
        with torch.inference_mode():
            logits = network(torch.tensor([context])).logits[0, -1]
        assert audio[place] == 306 + int(logits[306:322].argmax())


def test_window_keeps_header_opening_and_the_latest_frames():
    header, past, opening = list(range(10)), list(range(100, 180)), list(range(50, 60))
    context, kept = keep_window(header, past, opening, list(range(200, 231)), positions=100)
    # 80 positions beside header and opening, 40 of them kept: 31 audio ids and the 9 latest of the past.
    assert (context, kept) == (header + past[-9:] + opening + list(range(200, 231)), 31)
    context, kept = keep_window(header, past, opening, list(range(200, 251)), positions=100)
    # 40 of 51 would begin with an accompaniment.
    assert (context, kept) == (header + opening + list(range(212, 251)), 39)
    context, kept = keep_window(header * 5, past, opening, list(range(200, 290)), positions=100)
    assert (context, kept) == (opening + list(range(246, 290)), 44)
    context, kept = keep_window(header, past, opening * 9, [], positions=100)
    assert (context, kept) == (past[-25:] + (opening * 9)[-50:], 0)


def test_a_model_without_room_for_a_song_is_refused(make_model):
    with pytest.raises(InputError, match="16 positions hold no song"):
        open_singer(make_model("stage1", positions=16))

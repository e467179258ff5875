"""Stage 1 against `generate()` called the way the published program calls it, and its rules on their own."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from megatron_music.documents import lyrics_to_song, reference, unconditional
from megatron_music.documents.document import DocumentContext
from megatron_music.errors import InputError
from megatron_music.generation import stage1
from megatron_music.generation.decoder import LlamaDecoder
from megatron_music.generation.models import ModelFolder
from megatron_music.generation.plan import header_text, plan_song
from megatron_music.generation.request import Reference, SongRequest, Stopped, SungSegment, Watch
from megatron_music.generation.sampling import SamplingSettings
from megatron_music.generation.stage1 import keep_window, sing
from megatron_music.songs.song import Segment, Song

SEGMENTS = ("[verse]\nla la la\n\n", "[chorus]\nsing with me\n\n", "[outro]\n\n")
GREEDY = SamplingSettings(temperature=0, min_new_tokens=10, max_new_tokens=40)
SHORT = SamplingSettings(min_new_tokens=4, max_new_tokens=20)


class Grammatical(LogitsProcessor):
    """Lets `generate()` write whole frames of codebook-0 ids, and `<EOA>` behind them."""

    def __init__(self, grammar, prompt_length):
        self.grammar, self.prompt_length = grammar, prompt_length

    def __call__(self, input_ids, scores):
        mask = torch.from_numpy(self.grammar.mask(input_ids.shape[1] - self.prompt_length).copy())
        return scores.masked_fill(~mask, -torch.inf)


def request(**fields):
    return SongRequest(**{"tags": "pop", "lyrics": SEGMENTS, "seed": 0} | fields)


def planned(folder, *requests, silence=None):
    opened = ModelFolder.open(folder)
    return [plan_song(opened, opened.tokenizer(), each, silence=silence) for each in requests]


def sung(folder, *requests, settings=GREEDY, watch=None, silence=None):
    opened = ModelFolder.open(folder)
    return sing(opened.network(), opened.positions, planned(folder, *requests, silence=silence), settings, watch)


def audio_of(song):
    return [segment.audio for segment in song.segments]


def all_ids(song):
    return song.plan.header + [id for segment in song.segments for id in segment.ids]


def sung_by_generate(folder, tags, segments, settings):
    """The published program's loop: the whole prefix is handed to `generate()` for every segment."""
    opened = ModelFolder.open(folder)
    network, encode = opened.network(), opened.tokenizer().encode
    grammar = planned(folder, request())[0].grammar
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


class Reads:
    """Records what stands in a decoder's caches, row by row; a row that was emptied starts a new list."""

    def __init__(self, monkeypatch):
        self.rows, self.taken_back = {}, 0
        plain_read, plain_forget, plain_take_back = LlamaDecoder.read, LlamaDecoder.forget, LlamaDecoder.take_back

        def read(decoder, ids_RT, rows=None):
            for row, ids in zip(range(len(ids_RT)) if rows is None else rows, ids_RT, strict=True):
                self.rows.setdefault(row, [[]])[-1] += list(ids)
            return plain_read(decoder, ids_RT, rows)

        def forget(decoder, row):
            if self.rows.get(row, [[]])[-1]:
                self.rows[row].append([])
            plain_forget(decoder, row)

        def take_back(decoder, row, tokens):
            del self.rows[row][-1][len(self.rows[row][-1]) - tokens :]
            self.taken_back += tokens
            plain_take_back(decoder, row, tokens)

        monkeypatch.setattr(LlamaDecoder, "take_back", take_back)
        monkeypatch.setattr(LlamaDecoder, "read", read)
        monkeypatch.setattr(LlamaDecoder, "forget", forget)


def document_of(task, segments, genres, folder, codes, **options):
    """The training document of a song with these codes by track."""
    opened = ModelFolder.open(folder)
    named = Song("sung", codes=dict.fromkeys(codes, "in memory"), genres=genres, segments=segments)
    context = DocumentContext(
        opened.vocabulary,
        opened.tokenizer(),
        opened.vocabulary.codec(),
        lambda song, track, codec: np.asarray(codes[track])[None],
    )
    options = next(
        value for name, value in vars(task).items() if name.endswith("Options") and value.__module__ == task.__name__
    )(code_rate_tolerance=None, **options)
    (document,) = task.documents(named, context, np.random.default_rng(0), options)
    return document.ids.tolist()


def segments_of(song):
    frames = np.cumsum([0] + [len(segment.audio) // 2 for segment in song.segments])
    return [Segment(text, int(a), int(b)) for text, a, b in zip(SEGMENTS, frames, frames[1:], strict=False)]


@pytest.mark.parametrize("scales", [(1.5, 1.2), (1.0, 1.2), (1.5, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("seed", [1, 4])
def test_greedy_tokens_equal_generate_on_the_whole_prefix(make_model, scales, seed):
    # Without guidance `generate()` penalises raw logits; ours penalises log-probabilities throughout.
    penalty = 1.1 if scales == (1.5, 1.2) else 1.0
    settings = SamplingSettings(
        temperature=0, min_new_tokens=10, max_new_tokens=40, repetition_penalty=penalty,
        guidance_first=scales[0], guidance_rest=scales[1],
    )  # fmt: skip
    folder = make_model("stage1", seed=seed)
    (song,) = sung(folder, request(), settings=settings)
    assert audio_of(song) == sung_by_generate(folder, "pop", SEGMENTS, settings)


def test_every_token_is_read_once_and_in_training_order(make_model, monkeypatch):
    folder = make_model("stage1")
    reads = Reads(monkeypatch)
    (song,) = sung(folder, request(), settings=SHORT)
    encode, grammar = ModelFolder.open(folder).tokenizer().encode, song.plan.grammar
    expected = encode("Generate music from the given lyrics segment by segment.\n[Genre] pop\n" + "\n".join(SEGMENTS))
    twins = []
    for text, segment in zip(SEGMENTS, song.segments, strict=True):
        expected += encode("[start_of_segment]") + encode(text) + grammar.opening + segment.audio
        expected += [grammar.end] + encode("[end_of_segment]")
        twins.append(grammar.opening[-1:] + segment.audio[: 20 if len(segment.audio) < 20 else 19])
    last_unread = len(song.segments[-1].closing) + (len(song.segments[-1].audio) == 20)
    assert reads.rows == {0: [expected[:-last_unread]], 1: twins}
    assert all_ids(song) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_change_no_song(make_model, monkeypatch, temperature):
    """Songs whose normalisers are found for many tokens at once, and those that wait for one at every token."""
    folder = make_model("stage1", positions=256)
    settings = SamplingSettings(temperature=temperature, repetition_penalty=2.0, min_new_tokens=4, max_new_tokens=80)
    songs, taken_back = [], []
    for rows in (1, 8, 64):
        with monkeypatch.context() as patch:
            patch.setattr(stage1, "ROWS_SETTLED", rows)
            reads, tokens = Reads(patch), []
            asked = request(seed=3), request(seed=4, lyrics=(), tracks="mix")
            sung_songs = sung(
                folder, *asked, settings=settings, watch=Watch(on_token=lambda *told, to=tokens: to.append(told))
            )
            songs.append(([song.segments for song in sung_songs], sorted(tokens)))
            taken_back.append(reads.taken_back)
    assert songs[0] == songs[1] == songs[2]
    assert taken_back[0] == 0 < taken_back[2]


def test_a_sung_song_is_the_training_document_of_its_own_codes(make_model):
    folder = make_model("stage1")
    (song,) = sung(folder, request(tags="pop, female"), settings=SHORT)
    codes = {"vocals": song.codes_T(0), "accompaniment": song.codes_T(1)}
    document = document_of(lyrics_to_song, segments_of(song), "pop, female", folder, codes, min_segment_s=0)
    assert document == [*all_ids(song), 300]


@pytest.mark.parametrize("order", ["header_first", "reference_first"])
@pytest.mark.parametrize("mode", ["dual", "vocals"])
def test_a_song_with_a_reference_is_the_training_document_with_that_reference(make_model, order, mode):
    folder = make_model("stage1", positions=2048)
    write_documents(folder, reference={"order": order, "mode": mode})
    lengths = {"mean_s": 0.5, "variance_s2": 0.01, "shortest_s": 0.4, "longest_s": 0.6, "frames_per_second": 10.0}
    # Whatever stretch the document draws, it is the same code in each track.
    fours, fives = np.full(60, 4, np.int16), np.full(60, 5, np.int16)
    segments = [Segment(text, 20 * number, 20 * number + 20) for number, text in enumerate(SEGMENTS)]
    document = document_of(
        reference, segments, "pop", folder, {"vocals": fours, "accompaniment": fives},
        order=order, mode=mode, min_segment_s=0, redraws=0, **lengths,
    )  # fmt: skip
    length = document[: document.index(302)].count(306 + 4)
    tracks = (fours[:length], fives[:length]) if mode == "dual" else (fours[:length],)
    past = tuple(SungSegment(text, np.stack([fours[:20], fives[:20]])) for text in SEGMENTS[:2])
    (plan,) = planned(folder, request(reference=Reference(tracks), past=past))
    ids = plan.header + [id for segment in plan.past for id in segment.ids] + plan.openings[2]
    assert length > 3 and document[: len(ids)] == ids


@pytest.mark.parametrize("tracks", ["dual", "mix"])
def test_a_song_without_lyrics_is_an_unconditional_document(make_model, tracks):
    folder = make_model("stage1")
    (song,) = sung(folder, request(lyrics=(), tags="pop female", tracks=tracks), settings=SHORT)
    names = ["vocals", "accompaniment"] if tracks == "dual" else ["mix"]
    codes = {name: song.codes_T(index) for index, name in enumerate(names)}
    assert 4 <= len(song.segments[0].audio) == sum(map(len, codes.values())) <= 20
    document = document_of(unconditional, [], "pop female", folder, codes, tracks=tracks, tags="as_written")
    assert document == [*all_ids(song), 300]


def test_an_instrumental_song_has_silent_vocals(make_model):
    folder = make_model("stage1")
    for lyrics in (SEGMENTS, ()):
        settings = SamplingSettings(min_new_tokens=20, max_new_tokens=40)
        (song,) = sung(folder, request(lyrics=lyrics, instrumental=True), settings=settings, silence=7)
        assert set(song.codes_T(0).tolist()) == {7} and len(set(song.codes_T(1).tolist())) > 2
        assert len(song.codes_T(0)) == len(song.codes_T(1))


def test_sampled_audio_is_whole_frames_of_the_codec_between_the_limits(make_model):
    settings = SamplingSettings(min_new_tokens=6, max_new_tokens=31)
    (song,) = sung(make_model("stage1"), request(), settings=settings)
    for segment in song.segments:
        assert len(segment.audio) % 2 == 0 and 6 <= len(segment.audio) <= 31
        assert all(306 <= id < 322 for id in segment.audio)
    audio = [id for segment in song.segments for id in segment.audio]
    np.testing.assert_array_equal(song.codes_T(0), np.array(audio[0::2]) - 306)
    np.testing.assert_array_equal(song.codes_T(1), np.array(audio[1::2]) - 306)


def test_seeds_repeat_and_differ(make_model):
    folder = make_model("stage1")
    songs = [sung(folder, request(seed=seed), settings=SHORT)[0].segments for seed in (5, 5, 6, 5 + 2**63)]
    assert songs[0] == songs[1] != songs[2] and songs[3] != songs[0]


@pytest.mark.parametrize("scales", [(1.5, 1.2), (1.5, 1.0), (1.0, 1.0)])
def test_songs_sung_together_are_those_sung_alone(make_model, scales):
    folder = make_model("stage1", positions=256)
    past = tuple(SungSegment(text, np.full((2, 30), 3, np.int16)) for text in SEGMENTS[:1])
    requests = [
        request(seed=1),
        request(seed=1, tags="rock"),
        request(seed=2, segments=1),
        request(seed=3, lyrics=()),
        request(seed=4, past=past),
        request(seed=5, lyrics=(), tracks="mix"),
        request(seed=6, reference=Reference((np.arange(12, dtype=np.int16),))),
    ]
    settings = SamplingSettings(min_new_tokens=10, max_new_tokens=90, guidance_first=scales[0], guidance_rest=scales[1])
    together = sung(folder, *requests, settings=settings)
    alone = [sung(folder, each, settings=settings)[0] for each in requests]
    assert [song.segments for song in together] == [song.segments for song in alone]
    assert max(len(all_ids(song)) for song in together) > 256


def test_a_song_goes_on_as_it_would_have_gone_on(make_model):
    folder = make_model("stage1", positions=1024)
    for settings in (GREEDY, SHORT):
        (whole,) = sung(folder, request(seed=9), settings=settings)
        ends = np.cumsum([len(segment.audio) // 2 for segment in whole.segments])
        codes_2T = np.stack([whole.codes_T(0), whole.codes_T(1)])
        for after in (1, 2):
            spans = zip([0, *ends], ends[:after], strict=False)
            past = tuple(SungSegment(SEGMENTS[n], codes_2T[:, a:b]) for n, (a, b) in enumerate(spans))
            (rest,) = sung(folder, request(seed=9, past=past), settings=settings)
            assert rest.segments == whole.segments
            (one,) = sung(folder, request(seed=9, past=past, segments=1), settings=settings)
            assert one.segments == whole.segments[: after + 1]


@pytest.mark.parametrize("positions", [180, 240])
def test_a_song_longer_than_the_positions_is_sung_to_the_end(make_model, positions):
    settings = SamplingSettings(min_new_tokens=90, max_new_tokens=120)
    folder = make_model("stage1", positions=positions)
    (song,) = sung(folder, request(), settings=settings)
    assert [90 <= len(segment.audio) <= 120 for segment in song.segments] == [True] * 3
    assert sung(folder, request(), settings=settings)[0].segments == song.segments


def test_header_and_reference_stay_and_tokens_follow_from_the_kept_context(make_model, monkeypatch):
    """The first id after the window has moved is the most probable one behind exactly the kept context."""
    settings = SamplingSettings(
        temperature=0, repetition_penalty=1, guidance_first=1, guidance_rest=1, min_new_tokens=90, max_new_tokens=120
    )
    folder = make_model("stage1", positions=260)
    contexts = []
    plain = LlamaDecoder.read

    def recording(decoder, ids_RT, rows=None):
        if decoder.lengths[0] == 0:
            contexts.append(list(ids_RT[0]))
        return plain(decoder, ids_RT, rows)

    monkeypatch.setattr(LlamaDecoder, "read", recording)
    asked = request(reference=Reference((np.arange(16, dtype=np.int16),)), segments=1)
    (song,) = sung(folder, asked, settings=settings)
    network, start = ModelFolder.open(folder).network(), song.plan.header + song.plan.openings[0]
    audio, moved = song.segments[0].audio, contexts[1:]
    assert moved and song.plan.header.count(301) == 1
    for context in moved:
        assert context[: len(start)] == start
        kept = context[len(start) :]
        place = next(i for i in range(len(kept), len(audio)) if audio[i - len(kept) : i] == kept)
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
    context, kept = keep_window(header, past, opening, list(range(200, 251)), positions=100, tracks=1)
    assert (context, kept) == (header + opening + list(range(211, 251)), 40)
    context, kept = keep_window(header * 6, past, opening, [], positions=100)
    assert (context, kept) == (header * 6 + past[-15:] + opening, 0)


def test_callbacks_tell_every_token_and_section(make_model):
    tokens, sections = [], []
    watch = Watch(on_token=lambda *told: tokens.append(told), on_segment=lambda *told: sections.append(told))
    songs = sung(make_model("stage1"), request(seed=1), request(seed=2, segments=1), settings=SHORT, watch=watch)
    assert sorted(sections) == [(0, 0, 3), (0, 1, 3), (0, 2, 3), (1, 0, 1)]
    assert sorted(tokens) == [
        (number, section, count + 1)
        for number, song in enumerate(songs)
        for section, segment in enumerate(song.segments)
        for count in range(len(segment.audio))
    ]


def test_a_stop_ends_it_at_the_next_token(make_model):
    tokens, stop = [], threading.Event()

    def on_token(*told):
        tokens.append(told)
        if len(tokens) == 7:
            stop.set()

    with pytest.raises(Stopped):
        sung(make_model("stage1"), request(), watch=Watch(on_token=on_token, stop=stop))
    assert len(tokens) == 7


def write_documents(folder, **options):
    import json

    sources = {task: {"task": task, "options": given, "shares": {}} for task, given in options.items()}
    content = {"codec": "embedded", "context_tokens": 10000, "sources": sources}
    (folder / "documents.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "trained, asked, message",
    [
        ("lyrics_to_song", {"lyrics": ()}, "was not trained on songs without lyrics \\(dual\\)"),
        ("unconditional", {"lyrics": ()}, "was not trained on songs without lyrics \\(dual\\)"),
        ("unconditional", {}, "was not trained on lyrics"),
        ("lyrics_to_song", {"reference": Reference((np.zeros(9, np.int16),))}, "was not trained on references"),
        ("lyrics_to_song", {"tags": "pop<EOA>"}, "tags: holds the special token <EOA>"),
        ("lyrics_to_song", {"lyrics": ("[a]\nla <SOA>\n\n",)}, "section 1: holds the special token <SOA>"),
        ("reference", {"reference": Reference((np.full(9, 16, np.int16),))}, "reference: codes from 16 to 16"),
        ("lyrics_to_song", {"past": (SungSegment("", np.full((2, 3), -1)),)}, "past: codes from -1"),
    ],
)
def test_requests_that_a_model_can_not_sing(make_model, trained, asked, message):
    folder = make_model("stage1")
    write_documents(folder, **{trained: {"tracks": "mix"} if trained == "unconditional" else {}})
    with pytest.raises(InputError, match=message):
        planned(folder, request(**asked))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"tags": " "}, "--tags: there are none"),
        ({"segments": 0}, "--segments: 0 segments make no song"),
        ({"tracks": "both"}, "--tracks: 'both' is not known"),
        ({"tracks": "mix"}, "--tracks: a song with lyrics has two"),
        ({"lyrics": (), "tracks": "mix", "instrumental": True}, "--instrumental: a mix has no vocals"),
        ({"lyrics": (), "reference": Reference(())}, "--reference: a song without lyrics takes none"),
        ({"past": (SungSegment("", np.zeros((2, 1))),) * 3}, "--continue: 3 of 3 sections have been sung already"),
    ],
)
def test_requests_that_make_no_song(fields, message):
    with pytest.raises(InputError, match=message):
        request(**fields)


def test_requests_come_back_from_their_record():
    past = (SungSegment(SEGMENTS[0], np.arange(6, dtype=np.int16).reshape(2, 3)),)
    given = request(reference=Reference((np.arange(4, dtype=np.int16),), "a"), past=past, segments=1, seed=2**40)
    back = SongRequest.from_record(given.record())
    assert back.record() == given.record()
    same = dataclasses.replace(back, reference=None, past=())
    assert same == dataclasses.replace(given, reference=None, past=())
    np.testing.assert_array_equal(back.past[0].codes_2T, past[0].codes_2T)
    assert back.past[0].codes_2T.dtype == np.int16


def test_a_song_without_room_is_refused(make_model):
    folder = make_model("stage1", positions=100)
    with pytest.raises(InputError, match="song: is too long: tags, lyrics and reference take .* hold 75"):
        sung(folder, request())

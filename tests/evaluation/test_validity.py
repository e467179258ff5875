"""The invalid-token share of models whose share is known."""

import numpy as np
import pytest
import torch
import yaml

from megatron_music.corpus.indexed import IndexedSource, IndexedWriter
from megatron_music.engine.sampling import RereadingReader, Span, Validity, draw, sample_spans, span_prompts
from megatron_music.errors import InputError
from megatron_music.evaluation.validity import (
    CachedReader,
    invalid_by_position,
    invalid_share,
    invalid_token_share,
    openings,
)
from megatron_music.generation.decoder import LlamaDecoder
from megatron_music.generation.models import ModelFolder
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.vocabulary import Vocabulary

SOA, EOA, MARKER, FIRST, SIZE, PADDED = 301, 302, 305, 306, 16, 384
PROMPTS = [[5, 6, SOA, MARKER], [7, SOA, MARKER]]


@pytest.fixture
def vocabulary(tmp_path, tiny_vocabulary) -> Vocabulary:
    (tmp_path / "vocabulary.yaml").write_text(yaml.safe_dump(tiny_vocabulary))
    return Vocabulary.load(tmp_path / "vocabulary.yaml")


def reader_of(probabilities, rows=4, positions=64):
    """A model whose next id never depends on what it reads."""
    logits = torch.log(torch.tensor(probabilities, dtype=torch.float64))
    return RereadingReader(lambda ids: logits.expand(len(ids), -1).clone(), rows, positions)


def probabilities(**shares):
    """Shares for ``codes`` (codebook 0), ``later`` (codebook 1), ``text``, ``end`` and ``padding``."""
    ranges = {
        "codes": (FIRST, 16),
        "later": (FIRST + SIZE, 16),
        "text": (0, 300),
        "end": (EOA, 1),
        "padding": (370, 14),
    }
    out = np.zeros(PADDED)
    for name, share in shares.items():
        first, count = ranges[name]
        out[first : first + count] = share / count
    return out


def test_a_model_that_writes_codes_only_has_no_invalid_tokens(vocabulary):
    found = sample_spans(reader_of(probabilities(codes=1)), PROMPTS, AudioGrammar(vocabulary), 500)
    assert (found.share, found.positions, found.codes) == (0, 500, set(range(16)))


@pytest.mark.parametrize("where", ["later", "text", "padding"])
def test_the_share_is_the_probability_of_what_is_not_allowed(vocabulary, where):
    reader = reader_of(probabilities(codes=0.7, **{where: 0.3}))
    found = sample_spans(reader, PROMPTS, AudioGrammar(vocabulary), 8000)
    assert found.share == pytest.approx(0.3, abs=0.02)


def test_an_end_is_valid_behind_a_whole_frame_only(vocabulary):
    shares = probabilities(codes=0.5, end=0.5)
    dual = sample_spans(reader_of(shares), PROMPTS, AudioGrammar(vocabulary, tracks=2), 20_000)
    # A span has 2 frames on average, so 4 codes and an end are counted. An end is invalid for the first code and for
    # every second one: for 3 of them, each time with probability 1/2.
    assert dual.share == pytest.approx(3 * 0.5 / 5, abs=0.02)
    single = sample_spans(reader_of(shares), PROMPTS, AudioGrammar(vocabulary, tracks=1), 20_000)
    # 2 codes and an end are counted, and only for the first code an end is invalid.
    assert single.share == pytest.approx(0.5 / 3, abs=0.02)


def test_an_invalid_draw_is_replaced_by_an_allowed_one_of_the_models_choice(vocabulary):
    logits = torch.full((3, PADDED), -20.0)
    logits[:, 0] = 20.0
    logits[:, FIRST + 3] = 5.0
    logits[2, EOA] = 10.0
    ids, valid = draw(logits, [0, 1, 2], AudioGrammar(vocabulary), torch.Generator().manual_seed(0))
    assert (ids, valid) == ([FIRST + 3, FIRST + 3, EOA], [False] * 3)


def test_rows_go_on_with_what_was_drawn_and_start_anew_at_the_end_of_a_span(vocabulary):
    """The rows that the model is given are prompts with valid audio behind them, at most as long as it can read."""
    generator, seen = torch.Generator().manual_seed(1), []

    def next_logits(rows):
        seen.extend(list(row) for row in rows)
        return torch.randn(len(rows), PADDED, generator=generator) + torch.from_numpy(
            5.0 * (probabilities(codes=1) + probabilities(end=1) > 0)
        )

    grammar = AudioGrammar(vocabulary)
    sample_spans(RereadingReader(next_logits, 3, 20), PROMPTS, grammar, 300)
    ended = 0
    for row in seen:
        assert len(row) <= 20
        prompt = next(prompt for prompt in PROMPTS if row[: len(prompt)] == prompt)
        audio = row[len(prompt) :]
        ended += EOA in audio
        assert all(grammar.is_allowed(id, position) for position, id in enumerate(audio))
        assert EOA not in audio[:-1]
    assert ended >= 5


def test_long_prompts_lose_their_beginning(vocabulary):
    opened = []

    def next_logits(rows):
        opened.extend(len(row) for row in rows)
        return torch.log(torch.from_numpy(probabilities(codes=1))).expand(len(rows), -1).clone()

    sample_spans(RereadingReader(next_logits, 1, 20), [[1] * 50 + [SOA, MARKER]], AudioGrammar(vocabulary), 25)
    assert opened[0] == 10 and max(opened) == 20


def test_counts_by_position_of_the_span():
    """Two spans: of 17 ids, the last but one invalid, and of 5,001, of which two are."""
    long = [position not in (1023, 5000) for position in range(5001)]
    found = Validity([Span(0, valid=[True] * 15 + [False, True]), Span(1, valid=long)])
    counts = {
        name: (told["sampled"], told["invalid"], told["spans"]) for name, told in invalid_by_position(found).items()
    }
    assert counts == {
        "0-15": (32, 1, 2),
        "16-63": (49, 0, 2),
        "64-255": (192, 0, 1),
        "256-1023": (768, 1, 1),
        "1024-4095": (3072, 0, 1),
        "4096-": (905, 1, 1),
    }
    assert (found.positions, found.share) == (5018, 3 / 5018)
    assert invalid_share(found).value == found.share


def test_spans_end_at_the_longest_and_know_their_prompts(vocabulary):
    found = sample_spans(reader_of(probabilities(codes=1), rows=3), PROMPTS, AudioGrammar(vocabulary), 60, longest=7)
    assert [len(span.ids) for span in found.spans[:6]] == [7] * 6
    assert [span.prompt for span in found.spans[:6]] == [0, 1, 0, 1, 0, 1]


def test_cached_and_uncached_reading_count_the_same(make_model):
    folder = ModelFolder.open(make_model("model", positions=48))
    network, grammar = folder.network(), AudioGrammar(folder.vocabulary)

    def next_logits(rows):
        with torch.inference_mode():
            return torch.stack([network(torch.tensor([row])).logits[0, -1] for row in rows])

    uncached = sample_spans(RereadingReader(next_logits, 3, 48), PROMPTS, grammar, 200, seed=2)
    cached = sample_spans(CachedReader(LlamaDecoder(network, 3, 48)), PROMPTS, grammar, 200, seed=2)
    assert cached == uncached
    whole = invalid_token_share(folder.path, PROMPTS, 200, seed=2, spans_at_once=3)
    assert whole == cached
    assert invalid_token_share(folder.path, PROMPTS, 200, seed=3, spans_at_once=3).codes != set()


def test_a_model_of_constant_logits_writes_nearly_nothing_valid(make_model):
    path = make_model("model")
    network = ModelFolder.open(path).network()
    torch.nn.init.zeros_(network.lm_head.weight)
    network.save_pretrained(path)
    found = invalid_token_share(path, PROMPTS, positions=3000, tracks=1)
    assert found.positions >= 3000
    assert found.share == pytest.approx(1 - 17 / PADDED, abs=0.01)


def test_prompts_are_documents_up_to_their_first_span(tmp_path, vocabulary):
    documents = [[1, 2, SOA, MARKER, 306, 307, EOA, 3, SOA, MARKER, 306, 307, EOA], [4, 5, 300], [6, SOA, MARKER, 306]]
    with IndexedWriter(tmp_path / "songs") as writer:
        for ids in documents:
            writer.add(np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.uint8))
    grammar = AudioGrammar(vocabulary)
    songs = IndexedSource(tmp_path / "songs")
    assert span_prompts(songs, grammar) == [[1, 2, SOA, MARKER], [6, SOA, MARKER]]
    assert span_prompts(songs, grammar, most=1) == [[1, 2, SOA, MARKER]]
    with IndexedWriter(tmp_path / "text") as writer:
        writer.add(np.array([1], dtype=np.int32), np.zeros(1, dtype=np.uint8))
    with pytest.raises(InputError, match="no document has a span of embedded"):
        span_prompts(IndexedSource(tmp_path / "text"), grammar)
    with pytest.raises(ValueError, match="no prompts"):
        sample_spans(reader_of(probabilities(codes=1)), [], grammar, 10)


def test_openings_are_prompts_with_the_audio_that_follows(tmp_path, vocabulary):
    documents = [[1, 2, SOA, MARKER, 306, 307, EOA, 3, SOA, MARKER, 308, 309, EOA], [4, 5, 300], [6, SOA, MARKER, 310]]
    with IndexedWriter(tmp_path / "songs") as writer:
        for ids in documents:
            writer.add(np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.uint8))
    found = openings(IndexedSource(tmp_path / "songs"), AudioGrammar(vocabulary))
    assert sorted((prompt, true.tolist()) for prompt, true in found) == [
        ([1, 2, SOA, MARKER], [306, 307]),
        ([6, SOA, MARKER], [310]),
    ]

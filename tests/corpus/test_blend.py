"""Mixtures over the sources that are there: shares from hours and sizes, and sources that run out."""

import json
from fractions import Fraction

import pytest

from megatron_music.corpus.blend import check_supply, read_stocks, run_stream, token_shares, tokens_given
from megatron_music.errors import InputError
from megatron_music.recipe.phases import phase_spans


@pytest.fixture
def corpus(tmp_path, write_source):
    """1000 tokens of songs_a in half an hour, 3000 of songs_b in an hour, 500 of speech in an hour."""
    write_source(tmp_path / "songs_a", [100] * 10)
    write_source(tmp_path / "songs_b", [300] * 10)
    write_source(tmp_path / "speech", [50] * 10)
    for name, seconds in {"songs_a": 1800.0, "songs_b": 3600.0, "speech": 3600.0}.items():
        change_sidecar(tmp_path, name, seconds=seconds)
    return tmp_path


def change_sidecar(corpus, name, **fields):
    path = corpus / f"{name}.json"
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def shares_of(recipe):
    return token_shares(recipe, read_stocks(recipe))


def test_hours_become_tokens_by_what_was_measured(corpus, make_recipe):
    sources = ["songs_a", "songs_b", "speech"]
    mixture = {"sources": sources, "ratios": ["songs_a:songs_b:speech = 2:1:4"], "unit": "hours"}
    # 2 hours at 2000 tokens, 1 at 3000, 4 at 500.
    (shares,) = shares_of(make_recipe([(1000, 10, 1, mixture)]))
    assert shares == {"songs_a": Fraction(4, 9), "songs_b": Fraction(3, 9), "speech": Fraction(2, 9)}
    (plain,) = shares_of(make_recipe([(1000, 10, 1, {"shares": {"songs_a": 1, "speech": 1}, "unit": "hours"})]))
    assert plain == {"songs_a": Fraction(4, 5), "speech": Fraction(1, 5)}


def test_the_rest_is_split_by_size_so_that_it_lasts_equally_long(corpus, make_recipe):
    mixture = {"sources": ["songs_a", "songs_b", "speech"], "ratios": ["songs:speech = 1:1"], "rest": "by_size"}
    in_tokens, in_hours = shares_of(make_recipe([(1000, 10, 1, mixture), (1000, 10, 1, mixture | {"unit": "hours"})]))
    assert in_tokens == {"songs_a": Fraction(1, 8), "songs_b": Fraction(3, 8), "speech": Fraction(1, 2)}
    # Songs have 4000 tokens in 1.5 hours, speech 500 in one; within the songs hours stand as those that are there.
    per_hour = Fraction(4000) / Fraction(3, 2)
    songs = per_hour / (per_hour + 500)
    assert in_hours == {"songs_a": songs / 4, "songs_b": songs * 3 / 4, "speech": 1 - songs}


def test_hours_that_were_never_measured_are_asked_for(corpus, make_recipe):
    recipe = make_recipe([(1000, 10, 1, {"shares": {"songs_a": 1, "speech": 1}, "unit": "hours"})])
    change_sidecar(corpus, "speech", seconds=None)
    with pytest.raises(InputError, match=r"phases\[0\].mixture.unit: is hours, which .*speech.json does not count .*; "
                                         "build speech again, or state the ratios in tokens"):  # fmt: skip
        run_stream(recipe)
    assert len(run_stream(make_recipe([(1000, 10, 1, {"songs_a": 1, "speech": 1})]))) == 100


def test_what_the_plan_counts_is_what_the_stream_gives_to_a_sample(corpus, make_recipe):
    phases = [(10_000, 16, 4, {"songs_a": 2, "speech": 1}), (20_000, 64, 2, {"songs_a": 1, "songs_b": "5/7"})]
    recipe = make_recipe(phases)
    stream, spans = run_stream(recipe), phase_spans(recipe)
    standing = dict.fromkeys(recipe.source_names, Fraction(0))
    for span, given in zip(spans, tokens_given(spans, shares_of(recipe)), strict=True):
        for name, tokens in given.items():
            standing[name] += tokens
        consumed = stream.consumed(span.first_sequence + span.steps * span.phase.batch_sequences)
        for name, tokens in standing.items():
            assert abs(consumed[name] - tokens) < 16 + 64


def test_a_source_that_runs_out_is_named_with_its_phase_and_token(corpus, make_recipe):
    phases = [(8_000, 10, 1, {"songs_a": 1, "speech": 1}), (2_000, 10, 1, {"songs_b": 1}),
              (6_000, 10, 1, {"songs_a": 1, "speech": 3})]  # fmt: skip
    # songs_a gives 4000 and 1500 of 1000; speech 4000 and 4500 of 500.
    assert run_stream(make_recipe(phases, most_epochs={"songs_a": "5.5", "speech": 17}))
    with pytest.raises(InputError) as error:
        run_stream(make_recipe(phases, most_epochs={"songs_a": 5}))
    assert str(error.value) == (
        "most_epochs: songs_a runs out in phase phase-2 after 14,000 tokens of the run: it has 1,000 tokens and may "
        "give 5 epochs of them, the run needs 5.5; raise its limit, lower its share, shorten the run or build more "
        "of it"
    )
    with pytest.raises(InputError, match="speech runs out in phase phase-0 after 5,000 tokens .* the run needs 17 "
                                         r".as do, later, songs_a.;"):  # fmt: skip
        run_stream(make_recipe(phases, most_epochs={"*": 5}))
    with pytest.raises(InputError, match="songs_a runs out in phase phase-0 after 4,000 tokens"):
        run_stream(make_recipe(phases, most_epochs={"songs": 2, "songs_a": 9}))


def test_the_limit_may_be_reached_but_not_passed(corpus, make_recipe):
    exact = [(6_000, 10, 1, {"songs_b": 1})]
    recipe = make_recipe(exact, most_epochs={"songs_b": 2})
    check_supply(recipe, read_stocks(recipe), shares_of(recipe))
    with pytest.raises(InputError, match="after 6,000 tokens of the run"):
        run_stream(make_recipe([(6_001, 10, 1, {"songs_b": 1})], most_epochs={"songs_b": 2}))


def test_sources_that_are_not_there_or_no_sources_are_told(corpus, make_recipe):
    with pytest.raises(InputError, match="has no source choir .there: songs_a, songs_b, speech.; build it"):
        run_stream(make_recipe([(1000, 10, 1, {"choir": 1})]))
    recipe = make_recipe([(1000, 10, 1, {"speech": 1})])
    for content in ("[]", '{"tokens": "many", "documents": 1}', '{"tokens": 3}'):
        (corpus / "speech.json").write_text(content)
        with pytest.raises(InputError, match="speech.json: is not the sidecar of a source; build the source again"):
            read_stocks(recipe)
    (corpus / "speech.json").write_text('{"tokens": 0, "documents": 0}')
    with pytest.raises(InputError, match="speech.json: counts no tokens"):
        read_stocks(recipe)

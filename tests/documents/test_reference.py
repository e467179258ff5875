import numpy as np
import pytest
from scipy import stats

from megatron_music.documents import lyrics_to_song
from megatron_music.documents.reference import ReferenceOptions, documents, reference_frames
from megatron_music.songs.song import Rejected
from megatron_music.vocabulary.kinds import Kind

SOA, EOA = 32001, 32002
MODES = {
    "dual": [Kind.VOCAL, Kind.ACCOMPANIMENT],
    "vocals": [Kind.VOCAL],
    "accompaniment": [Kind.ACCOMPANIMENT],
    "mix": [Kind.MIX],
}


def _make(song, context, seed=0, **options):
    (document,) = documents(song, context, np.random.default_rng(seed), ReferenceOptions(**options))
    return document


def _reference(document):
    """Ids and kinds between the first ``<SOA><xcodec>`` and its ``<EOA>``."""
    start = int(np.flatnonzero(document.ids == SOA)[0]) + 2
    end = int(np.flatnonzero(document.ids == EOA)[0])
    return document.ids[start:end], document.kinds[start:end]


def _start(ids, track):
    """Where in the ids of a track, all of whose stretches differ, a reference was cut."""
    windows = np.lib.stride_tricks.sliding_window_view(track, len(ids))
    (start,) = np.flatnonzero((windows == ids).all(axis=1))
    return int(start)


@pytest.mark.parametrize("mode", MODES)
def test_the_reference_stands_between_header_and_segments(songs, context, mode):
    song = songs.song()
    document = _make(song, context, mode=mode)
    plain = lyrics_to_song.documents(song, context, np.random.default_rng(0), lyrics_to_song.LyricsOptions())[0]
    encode = context.tokenizer.encode
    header = encode(lyrics_to_song.header_text(song, song.segments, None, ReferenceOptions()))
    ids, kinds = _reference(document)
    middle = [*encode("[start_of_reference]"), SOA, 32016, *ids, EOA, *encode("[end_of_reference]")]
    assert document.ids.tolist() == [*header, *middle, *plain.ids[len(header) :]]
    assert len(document.kinds) == len(document.ids)
    assert kinds.tolist() == MODES[mode] * (len(ids) // len(MODES[mode]))
    assert 1000 <= len(ids) / len(MODES[mode]) <= 2000


@pytest.mark.parametrize("mode", MODES)
def test_the_reference_is_a_stretch_of_its_track(songs, context, mode):
    song = songs.song()
    ids, _ = _reference(_make(song, context, mode=mode))
    names = ["vocals", "accompaniment"] if mode == "dual" else [mode]
    track = np.stack([np.load(song.folder / f"{name}.npy")[0] for name in names], axis=1).ravel() + 45334
    assert _start(ids, track) % len(names) == 0


def test_the_reference_may_come_first(songs, context):
    song = songs.song()
    first = _make(song, context, order="reference_first")
    behind = _make(song, context)
    mark = context.tokenizer.encode("[start_of_reference]")
    assert first.ids[: len(mark)].tolist() == mark
    assert np.array_equal(_reference(first)[0], _reference(behind)[0])
    assert sorted(first.ids.tolist()) == sorted(behind.ids.tolist())


def test_a_random_mode_is_one_of_the_four(songs, context):
    song = songs.song()
    seen = {tuple(sorted(set(_reference(_make(song, context, seed, mode="random"))[1].tolist()))) for seed in range(30)}
    assert seen == {tuple(sorted(kinds)) for kinds in MODES.values()}


def test_lengths_are_the_truncated_normal():
    options = ReferenceOptions()
    lengths_s = np.array([reference_frames(q, 50, 10**6, options) / 50 for q in (np.arange(20000) + 0.5) / 20000])
    # half a grid step of 0.1 s and half a frame below 30 s; the spread of a variance of 3
    assert lengths_s.mean() == pytest.approx(29.89, abs=0.005)
    assert lengths_s.std() == pytest.approx(np.sqrt(3), abs=0.01)
    assert 20 <= lengths_s.min() < 25 and 35 < lengths_s.max() <= 40


def test_drawn_lengths_pass_for_the_truncated_normal(songs, context):
    """Kolmogorov-Smirnov: against a normal of mean 30 s and variance 3 on the published grid of 100 points."""
    song = songs.song(frames=9000)
    frames = [len(_reference(_make(song, context, seed, mode="mix"))[0]) for seed in range(2000)]
    grid_s = np.linspace(20, 40, 100)
    weights = stats.norm.pdf(grid_s, 30, np.sqrt(3))
    cumulative = np.cumsum(weights) / weights.sum()
    # A length of n frames was drawn between n and n + 1: its place within is drawn here.
    drawn_s = (np.array(frames) + np.random.default_rng(0).random(len(frames))) / 50
    assert stats.kstest(drawn_s, lambda seconds: np.interp(seconds, grid_s, cumulative)).pvalue > 0.01
    assert stats.kstest(drawn_s, lambda seconds: stats.norm.cdf(seconds, 30, 2)).pvalue < 1e-3


@pytest.mark.parametrize("chorus", [None, (40.0, 120.0)])
def test_drawn_starts_are_uniform(songs, context, chorus):
    """Given its length, a reference starts anywhere in the range, or in the chorus, with equal chance."""
    song = songs.song(frames=9000)
    first, last = (0, 9000) if chorus is None else (2000, 6000)
    song.structure = [] if chorus is None else [{"start": chorus[0], "end": chorus[1], "label": "chorus"}]
    track = np.load(song.folder / "mix.npy")[0] + 45334
    places = []
    for seed in range(600):
        ids, _ = _reference(_make(song, context, seed, mode="mix"))
        places.append((_start(ids, track) - first + 0.5) / (last - first - len(ids) + 1))
    assert stats.kstest(places, "uniform").pvalue > 0.01


def test_half_of_the_range_where_the_reference_does_not_fit(songs, context):
    assert reference_frames(0.5, 50, 1000, ReferenceOptions()) == 500
    ids, _ = _reference(_make(songs.song(frames=601), context, mode="vocals"))
    assert len(ids) == 300


def test_starts_inside_a_chorus_where_it_fits(songs, context):
    song = songs.song(frames=8000)
    track = np.load(song.folder / "mix.npy")[0] + 45334
    verse = {"start": 0.0, "end": 40.0, "label": "verse"}
    long, short = {"start": 40.0, "end": 100.0, "label": "chorus"}, {"start": 100.0, "end": 110.0, "label": "chorus"}

    def inside(structure):
        song.structure = structure
        made = [_reference(_make(song, context, seed, mode="mix"))[0] for seed in range(60)]
        return sum(2000 <= (start := _start(ids, track)) and start + len(ids) <= 5000 for ids in made)

    assert inside([verse, long]) == 60
    assert inside([verse, short]) < 30
    # half of the draws take the long chorus, the others go anywhere
    assert 30 < inside([verse, long, short]) < 60


def test_references_stay_in_the_range_of_the_lyrics(songs, context):
    song = songs.song(frames=8000)
    song.segments[0].start_frame, song.segments[1].end_frame = 2500, 6000
    track = np.load(song.folder / "vocals.npy")[0] + 45334
    for seed in range(30):
        ids, _ = _reference(_make(song, context, seed, mode="vocals"))
        start = _start(ids, track)
        assert 2500 <= start and start + len(ids) <= 6000


def test_monotonous_references_are_drawn_again(songs, context):
    codes_KT = np.zeros((8, 12000), dtype=np.int64)
    codes_KT[:, 8000:] = np.random.default_rng(0).integers(0, 1024, (8, 4000))
    song = songs.song(frames=12000, codes={"vocals": codes_KT})
    song.structure = [{"start": 0.0, "end": 100.0, "label": "chorus"}]

    def monotonous(**options):
        made = (_reference(_make(song, context, seed, mode="vocals", **options))[0] for seed in range(40))
        return sum(len(np.unique(ids)) < 0.1 * len(ids) for ids in made)

    assert monotonous(redraws=0) == 40
    assert monotonous() < 20
    assert monotonous(redraws=60) == 0


def test_a_mix_of_another_length(songs, context):
    longer = np.random.default_rng(0).integers(0, 1024, (8, 3009))
    assert _make(songs.song(codes={"mix": longer}), context, mode="mix")
    with pytest.raises(Rejected, match="length_difference: mix and vocals"):
        _make(songs.song(codes={"mix": longer[:, :2900]}), context, mode="mix")

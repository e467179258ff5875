import json
import random
from collections import Counter

import pytest

from megatron_music.songs.annotators import load_annotator
from megatron_music.songs.manifest import read_manifest, write_manifest
from megatron_music.songs.song import Rejected, Segment, Song

LYRICS = (
    "[verse]\nStaring at the evening from a window by the sea\n[chorus]\nSing it to the mountain, sing it to the rain\n"
)
OTHER = "[verse]\nShould auld acquaintance be forgot and never brought to mind\n"
STRUCTURE = [
    {"start": 0.0, "end": 9.5, "label": "intro"},
    {"start": 9.5, "end": 19.0, "label": "verse"},
    {"start": 19.0, "end": 27.0, "label": "chorus"},
    {"start": 27.0, "end": 30.0, "label": "outro"},
]
WORDS = "staring at the evening from a window by the sea sing it to the mountain sing it to the rain".split()
TRANSCRIPT = [
    [start_s, start_s + 0.5, f" {word}"]
    for start_s, word in zip([10 + i / 2 for i in range(10)] + [20 + i / 2 for i in range(10)], WORDS, strict=True)
]
VERSE = "[verse]\nStaring at the evening from a window by the sea\n\n"
CHORUS = "[chorus]\nSing it to the mountain, sing it to the rain\n\n"


def _align(song: Song, **options) -> Song:
    return load_annotator("align", options).annotate(song, song.folder)


def _segments(song: Song) -> list[tuple[str, int, int]]:
    return [(segment.text, segment.start_frame, segment.end_frame) for segment in song.segments]


def test_lyrics_are_put_in_time_by_a_transcript(tmp_path):
    song = _align(Song("a", duration_s=30.0, extra={"lyrics": LYRICS, "transcript": TRANSCRIPT}))
    assert _segments(song) == [("[intro]\n\n", 0, 500), (VERSE, 500, 1000), (CHORUS, 1000, 1500)]
    assert song.extra["lyrics_match"] == 1.0
    write_manifest(tmp_path / "manifest.jsonl", [song])
    (read,) = read_manifest(tmp_path / "manifest.jsonl")
    assert (read.segments, read.extra) == (song.segments, song.extra)


def test_the_structure_gives_the_edges(tmp_path):
    song = _align(Song("a", duration_s=30.0, structure=STRUCTURE, extra={"lyrics": LYRICS, "transcript": TRANSCRIPT}))
    assert _segments(song) == [
        ("[intro]\n\n", 0, 475), (VERSE, 475, 950), (CHORUS, 950, 1350), ("[outro]\n\n", 1350, 1500)
    ]  # fmt: skip


def test_lyrics_of_another_song_give_no_segments():
    song = Song("a", duration_s=30.0, extra={"lyrics": OTHER, "transcript": TRANSCRIPT})
    found = _align(song)
    assert found.segments == [] and found.extra["lyrics_match"] < 0.1
    assert _align(song, match="0").segments != []


def test_the_match_of_segments_that_a_song_has():
    segments = [Segment(VERSE, 0, 700), Segment(CHORUS, 700, 1500)]
    song = _align(Song("a", duration_s=30.0, segments=segments, extra={"transcript": TRANSCRIPT}))
    assert (song.segments, song.extra["lyrics_match"]) == (segments, 1.0)
    wrong = _align(Song("a", duration_s=30.0, segments=[Segment(OTHER, 0, 1500)], extra={"transcript": TRANSCRIPT}))
    assert wrong.segments == [Segment(OTHER, 0, 1500)] and wrong.extra["lyrics_match"] < 0.1
    again = _align(song, overwrite="true")
    assert _segments(again) == [("[intro]\n\n", 0, 500), (VERSE, 500, 1000), (CHORUS, 1000, 1500)]
    assert _align(Song("a", segments=segments)) == Song("a", segments=segments)


def test_timed_lines_need_no_transcript():
    lines = [{"text": "One", "start": 10.0, "end": 14.0}, {"text": "Two", "start": 20.0, "end": 26.0}]
    unlabelled = [Segment("One\nTwo\n\n", 0, 1500)]
    song = Song("a", duration_s=30.0, structure=STRUCTURE, segments=unlabelled, extra={"lines": lines})
    placed = [("[intro]\n\n", 0, 475), ("[verse]\nOne\n\n", 475, 950), ("[chorus]\nTwo\n\n", 950, 1350),
              ("[outro]\n\n", 1350, 1500)]  # fmt: skip
    assert _segments(_align(song)) == placed
    labelled = [Segment("[verse]\nOne\nTwo\n\n", 0, 1500)]
    song = Song("a", duration_s=30.0, structure=STRUCTURE, segments=labelled, extra={"lines": lines})
    assert _align(song) == song
    assert _segments(_align(song, overwrite="true")) == placed


def test_without_lyrics_the_words_that_were_heard_stand_in_the_structure():
    song = _align(Song("a", duration_s=30.0, structure=STRUCTURE, extra={"transcript": TRANSCRIPT}))
    assert _segments(song) == [
        ("[intro]\n\n", 0, 475),
        ("[verse]\nstaring at the evening from a window by the sea\n\n", 475, 950),
        ("[chorus]\nsing it to the mountain sing it to the rain\n\n", 950, 1350),
        ("[outro]\n\n", 1350, 1500),
    ]
    assert "lyrics_match" not in song.extra
    silent = _align(Song("a", duration_s=30.0, structure=STRUCTURE))
    assert [segment.text for segment in silent.segments] == [f"[{part['label']}]\n\n" for part in STRUCTURE]
    assert _align(Song("a", extra={"transcript": TRANSCRIPT})).segments == []


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"duration_s": 30.0, "extra": {"lyrics": LYRICS}}, "transcript_missing"),
        ({"extra": {"lyrics": LYRICS, "transcript": TRANSCRIPT}}, "duration"),
        ({"extra": {"lyrics": 3}}, "wrong_type"),
        ({"extra": {"transcript": {}}}, "wrong_type"),
        ({"extra": {"transcript": [[0, 1]]}}, "wrong_type"),
        ({"extra": {"transcript": [[0, float("inf"), "x"]]}}, "wrong_type"),
        ({"extra": {"transcript": [[-1, 0, "x"]]}}, "wrong_type"),
        ({"extra": {"transcript": [[0, 1, None]]}}, "wrong_type"),
        ({"extra": {"lines": "x"}}, "wrong_type"),
        ({"extra": {"lines": [{"text": "x", "start": 0}]}}, "wrong_type"),
        ({"extra": {"lines": [{"text": 1, "start": 0, "end": 1}]}}, "wrong_type"),
    ],
)
def test_fields_that_cannot_be_used_reject_the_song(fields, rule):
    with pytest.raises(Rejected, match=rule):
        _align(Song("a", **fields))


def test_no_corrupted_field_ends_in_another_error(tmp_path):
    """Seeded damage to the fields of a manifest's line: each ends in a song, or in a reject."""
    whole = {
        "id": "a",
        "audio_length_in_sec": 30.0,
        "msa": STRUCTURE,
        "lyrics": LYRICS,
        "transcript": TRANSCRIPT,
        "lines": [{"text": "One", "start": 10.0, "end": 14.0}, {"text": "Two", "start": 20.0, "end": 26.0}],
    }
    chance = random.Random(0)
    junk = [None, True, -1, 0, 1e9, 1e300, "", "[00:01.00]x", "[verse]", [], [1], {}, {"start": 0}, "\x00", "\u200b"]

    def damaged(value):
        if isinstance(value, dict | list) and value and chance.random() < 0.8:
            key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
            copy = value.copy()
            copy[key] = damaged(value[key])
            return copy
        return chance.choice(junk)

    lines = []
    for number in range(500):
        kept = {name: value for name, value in whole.items() if name == "id" or chance.random() < 0.7}
        name = chance.choice(list(kept))
        lines.append(json.dumps({**kept, name: damaged(damaged(kept[name])), "id": str(number)}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    outcomes = Counter()
    for song in read_manifest(tmp_path / "manifest.jsonl"):
        for options in ({}, {"overwrite": "true", "match": "0"}):
            try:
                found = _align(song, **options) if isinstance(song, Song) else song
                outcomes[type(found).__name__] += 1
                if isinstance(found, Song) and found.segments:
                    starts = [segment.start_frame for segment in found.segments]
                    ends = [segment.end_frame for segment in found.segments]
                    assert starts == [0, *ends[:-1]] and ends[-1] == round(found.duration_s * 50)
            except Rejected:
                outcomes["Rejected"] += 1
    assert outcomes.total() == 1000 and min(outcomes[name] for name in ("Song", "Reject", "Rejected")) > 50

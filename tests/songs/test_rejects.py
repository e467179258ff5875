"""Rejects in words: tables, lists and too many of them."""

import pytest
from typer.testing import CliRunner

from megatron_music import cli
from megatron_music.errors import InputError
from megatron_music.songs.rejects import (
    REJECTS,
    all_rejected,
    read_rejects,
    refuse_too_many,
    reject_lines,
    rejects_by_rule,
    where_to_read,
    write_rejects,
)
from megatron_music.songs.song import Reject

REJECTED = [
    Reject("a", "few_lyrics", "3 lines", "songs.jsonl: line 1", "3"),
    Reject("b\tb", "audio_missing", "no such\nfile", "songs.jsonl: line 2"),
    Reject("c", "few_lyrics", "1 line", "songs.jsonl: line 9", "1"),
]
LINES = [
    "few_lyrics\ta\t3 lines\tsongs.jsonl: line 1",
    "audio_missing\tb b\tno such file\tsongs.jsonl: line 2",
    "few_lyrics\tc\t1 line\tsongs.jsonl: line 9",
]


@pytest.fixture
def folder(tmp_path):
    write_rejects(tmp_path / REJECTS, REJECTED)
    return tmp_path


def test_rejects_come_back(tmp_path):
    rejects = [Reject("1", "codes_range", "codes from -1", "m.jsonl: line 1"), Reject("\ud800", "r", "", "")]
    write_rejects(tmp_path / "rejects.parquet", rejects)
    assert read_rejects(tmp_path / "rejects.parquet") == [rejects[0], Reject("\\ud800", "r", "", "")]
    write_rejects(tmp_path / "none.parquet", [])
    assert read_rejects(tmp_path / "none.parquet") == []
    (tmp_path / "junk.parquet").write_text("junk")
    with pytest.raises(InputError, match="not a table of rejects"):
        read_rejects(tmp_path / "junk.parquet")


def test_every_reject_is_one_line_of_fields_between_tabs(folder):
    assert list(reject_lines(folder)) == list(reject_lines(folder / REJECTS)) == LINES
    assert list(reject_lines(folder, "few_lyrics")) == [LINES[0], LINES[2]]
    ran = CliRunner().invoke(cli.app, ["rejects", str(folder), "--rule", "audio_missing"])
    assert (ran.exit_code, ran.stdout) == (0, LINES[1] + "\n")


def test_a_rule_or_a_table_that_is_not_there_is_told(folder):
    with pytest.raises(InputError, match="holds no reject by few_words; there are audio_missing, few_lyrics"):
        list(reject_lines(folder, "few_words"))
    with pytest.raises(InputError, match=r"nowhere: no such file; name a rejects.parquet"):
        list(reject_lines(folder / "nowhere"))
    write_rejects(folder / REJECTS, [])
    assert list(reject_lines(folder)) == []
    with pytest.raises(InputError, match="nothing was rejected"):
        list(reject_lines(folder, "few_lyrics"))


def test_rules_are_counted(folder):
    assert rejects_by_rule({"few_lyrics": 2000, "audio_missing": 1}) == [
        "rejected     2,001",
        "  audio_missing      1",
        "  few_lyrics         2,000",
    ]
    assert rejects_by_rule({}) == ["rejected     0"]
    assert where_to_read("codes of May", 1) == ["  each with its reason: megatron-music rejects 'codes of May'"]
    assert where_to_read("codes of May", 0) == []
    assert all_rejected(REJECTED) == "all 3 songs were rejected, 2 by few_lyrics (3 lines)"
    assert all_rejected([]) is None


@pytest.mark.parametrize(("rejected", "songs", "share"), [(0, 9, 0.0), (29, 100, 0.29), (3, 3, 1.0), (0, 0, 0.0)])
def test_a_share_that_is_allowed(rejected, songs, share):
    refuse_too_many("codes", rejected, songs, share)


@pytest.mark.parametrize(("rejected", "songs", "share"), [(1, 1000, 0.0), (2, 3, 0.66)])
def test_a_larger_one_is_refused(rejected, songs, share):
    with pytest.raises(InputError, match=f"codes: {rejected} of {songs:,} songs .* than --max-rejected {share:g};"):
        refuse_too_many("codes", rejected, songs, share)

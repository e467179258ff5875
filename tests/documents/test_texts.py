"""Texts for a tokenizer to learn from."""

import json

from megatron_music.documents.texts import texts_of_manifest


def test_lines_that_are_no_song_are_left_out_and_told(tmp_path, capsys):
    manifest, song = tmp_path / "songs.jsonl", json.dumps({"id": "a", "text": "la la"})
    manifest.write_text(f"{song}\n")
    assert (list(texts_of_manifest(manifest)), capsys.readouterr().err) == (["la la"], "")
    manifest.write_text(f"{song}\n{song}\n[1]\n")
    assert list(texts_of_manifest(manifest)) == ["la la"]
    told = f"left out: 2 lines that are no song, the first {manifest}: line 2: duplicate_id, another line above has"
    assert capsys.readouterr().err.startswith(told)

import json

import numpy as np
import pytest

from megatron_music.documents.tasks import TASKS, find_task, task_options
from megatron_music.documents.texts import texts_of_manifest
from megatron_music.errors import InputError


def test_tasks_by_name(songs, context):
    song = songs.song(text="Row your boat")
    for name, task in TASKS.items():
        assert find_task(name, "spec.yaml") is task
        made = task.documents(song, context, np.random.default_rng(0), task_options(task, {}, "spec.yaml"))
        again = task.documents(song, context, np.random.default_rng(0), task_options(task, {}, "spec.yaml"))
        for document, same in zip(made, again, strict=True):
            assert document.ids[-1] == context.vocabulary.special("<EOD>")
            assert document.ids.tolist() == same.ids.tolist()
            assert document.kinds.tolist() == same.kinds.tolist()


def test_wrong_names_and_options_are_told():
    with pytest.raises(InputError, match="'song' is not a task; choose from lyrics_to_song"):
        find_task("song", "spec.yaml: sources.cot.task")
    with pytest.raises(InputError, match="spec.yaml: tagz: unknown field; did you mean tags"):
        task_options(TASKS["lyrics_to_song"], {"tagz": "shuffled"}, "spec.yaml")
    with pytest.raises(InputError, match="spec.yaml: mode: found .*; choose 'dual'"):
        task_options(TASKS["reference"], {"mode": "both"}, "spec.yaml")
    with pytest.raises(InputError, match="spec.yaml: codebooks: found .*; write 8 or less"):
        task_options(TASKS["residual"], {"codebooks": 9}, "spec.yaml")


def test_texts_for_a_tokenizer(tmp_path):
    segment = {"codec_frame_start": 0, "codec_frame_end": 50, "line_content": "[verse]\nla\n\n"}
    song = {"id": "1", "genres": "folk", "splitted_lyrics": {"segmented_lyrics": [segment]}}
    clip = {"id": "2", "codec": "2.npy", "text": "Good morning."}
    text = {"id": "3", "text": "A sonata has\nthree movements."}
    lines = [json.dumps(song), "not a song", json.dumps(clip), json.dumps(text)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    assert list(texts_of_manifest(tmp_path / "manifest.jsonl")) == [
        "Generate music from the given lyrics segment by segment.\n[Genre] folk\n[verse]\nla\n\n",
        "[start_of_segment][verse]\nla\n\n[end_of_segment]",
        "[start_of_reference][end_of_reference]",
        "Generate music based on the given tags\n[Genre] folk",
        "Generate music in dual-track format based on the given tags\n[Genre] folk",
        "Generate speech: Good morning.",
        "A sonata has\nthree movements.",
    ]

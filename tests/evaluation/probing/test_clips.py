"""Files of labelled clips, and every way in which they can be wrong, in one line."""

import json

import numpy as np
import pytest

from megatron_music.errors import InputError
from megatron_music.evaluation.probing.clips import KEYS, read_clips, tasks_of


def write_csv(folder, *lines, headings="path,split,genre"):
    (folder / "clips.csv").write_text("\n".join([headings, *lines]) + "\n", "utf-8")
    return folder / "clips.csv"


def read(path):
    return tasks_of(read_clips(path), path)


def test_a_csv_of_many_tasks(tmp_path):
    path = write_csv(
        tmp_path,
        "a.wav,train,rock,C# minor,loud|fast,0.5,-1",
        "b.wav,train,jazz,Db minor,slow,,",
        "c.wav,valid,rock,,loud,1e-1,2",
        "d.wav,test,jazz,eb MAJOR,,-3,0",
        headings="path,split,genre,key,tags,valence,arousal",
    )
    clips = read_clips(path)
    assert clips[1].labels == {"genre": "jazz", "key": "Db minor", "tags": "slow"} and clips[3].split == "test"
    with pytest.raises(InputError, match="clips.csv: key: no clip of the split valid has a label that can be used"):
        read(path)
    for clip in clips:
        clip.labels.setdefault("key", "B major")
        clip.labels.setdefault("tags", ["fast"])
    genre, key, tags, emotion = tasks_of(clips, path)
    assert (genre.kind, genre.labels, genre.targets.tolist()) == ("classes", ["jazz", "rock"], [1, 0, 1, 0])
    assert [KEYS[at] for at in key.targets] == ["C# minor", "C# minor", "B major", "Eb major"]
    assert tags.labels == ["fast", "loud", "slow"]
    assert tags.targets.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert emotion.clips.tolist() == [0, 2, 3] and emotion.split.tolist() == ["train", "valid", "test"]
    np.testing.assert_allclose(emotion.targets, [[0.5, -1], [0.1, 2], [-3, 0]], rtol=1e-6)


def test_json_lines_and_classes_of_other_names(tmp_path):
    rows = [
        {"path": f"{n}.npy", "split": split, "class.singer": singer, "tags": ["a", "b"][: 1 + n % 2]}
        for n, (split, singer) in enumerate(zip(["train", "train", "valid", "test"], "ABBA", strict=True))
    ]
    path = tmp_path / "clips.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    singer, tags = read(path)
    assert (singer.name, singer.kind, singer.labels) == ("singer", "classes", ["A", "B"])
    assert tags.targets.tolist() == [[1, 0], [1, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    "lines, headings, told",
    [
        ([], None, "clips.csv: holds no clips"),
        (["a,train,x", ",valid,x"], None, "line 3: has no path"),
        (["a,dev,x"], None, "line 2: split is 'dev'; write train, valid, test"),
        (["a,train"], None, "line 2: has more or fewer fields than the headings"),
        (["a,train,x,y"], None, "line 2: has more or fewer fields than the headings"),
        (["a,train,1.5"], "path,split,length", "line 2: length: is no task that is known; name it class.NAME"),
        (["a,train,"], None, "has no labels; add a column such as genre"),
        (["a,train,x", "b,train,y", "c,test,x"], None, "genre: no clip of the split valid"),
        (["a,train,x", "b,train,y", "c,valid,y", "d,test,polka"], None, "'polka' stands in the split test and not in"),
        (["a,train,x", "b,valid,x", "c,test,x"], None, "genre: all clips are 'x'"),
        (["a,train,x|y", "b,valid,x", "c,test,z"], "path,split,tags", "'z' stands in the split test and not in train"),
        (["a,train,H major"], "path,split,key", "'H major' is not a key; write a tonic and a mode"),
        (["a,train,C"], "path,split,key", "'C' is not a key"),
        (["a,train,1,x"], "path,split,valence,arousal", "a: 'x' is not a number"),
        (["a,train,nan,1"], "path,split,valence,arousal", "a: 'nan' is not a number"),
        (["a,train,1"], "path,split,valence", "emotion: no clip of the split train"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path, lines, headings, told):
    path = write_csv(tmp_path, *lines, headings=headings or "path,split,genre")
    with pytest.raises(InputError, match=told) as raised:
        read(path)
    assert "\n" not in str(raised.value) and "clips.csv" in str(raised.value)


def test_marks_that_programs_write_are_no_part_of_the_fields(tmp_path):
    lines = ["a,train,x", "b,train,y", "c,valid,x", "d,test,y"]
    path = write_csv(tmp_path, *lines, headings="\ufeffpath,split,genre")
    assert [clip.path for clip in read_clips(path)] == ["a", "b", "c", "d"]
    row = {"path": "a\u2028b.npy", "split": "train", "genre": "x\x85"}
    (tmp_path / "clips.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n" + json.dumps(row), "utf-8")
    assert [clip.path for clip in read_clips(tmp_path / "clips.jsonl")] == [row["path"]] * 2


def test_two_columns_of_one_task_are_refused(tmp_path):
    path = write_csv(tmp_path, "a,train,x,1", "b,train,y,2", "c,valid,x,1", "d,test,y,2",
                     headings="path,split,genre,class.genre")  # fmt: skip
    with pytest.raises(InputError, match="clips.csv: class.genre: is a second task 'genre'; name its column otherwise"):
        read(path)


def test_broken_json_lines(tmp_path):
    path = tmp_path / "clips.jsonl"
    for content, told in (
        ('{"path": "a", "split": "train", "genre": "x"}\n{', "line 2: is not JSON"),
        ("[1]", "line 1: is not an object"),
        ('{"path": 3, "split": "train"}', "line 1: has no path"),
        ('{"path": "a", "split": "train", "tags": 3}', "a: 3 are not tags"),
        ('{"path": "a", "split": "train", "valence": true, "arousal": 1}', "True is not a number"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=told):
            read(path)

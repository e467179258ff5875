"""Files that are whole or absent."""

import pytest

from megatron_music.errors import InputError
from megatron_music.files import atomic_path, read_json, read_yaml, write_json


def test_a_file_appears_only_when_its_block_has_ended(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt" and not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [file.name for file in path.iterdir()] == ["new"]


def test_a_file_replaces_no_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(InputError, match="folder: is a folder; name a file"):
        write_json(tmp_path / "folder", {})
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]


def test_json_survives_and_damage_is_named_with_its_line(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1, 2]})
    assert read_json(tmp_path / "a.json") == {"ä": [1, 2]}
    (tmp_path / "b.json").write_text('{\n"a": ]')
    with pytest.raises(InputError, match="b.json: line 2: is not JSON"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(("text", "message"), [("- a\n", "does not hold a mapping"), ("a: [1\n", "is not YAML")])
def test_yaml_that_is_no_mapping_is_refused(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(tmp_path / "a.yaml")


def test_what_can_not_be_read_is_named(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path, message in [("none", "no such file"), (".", "is a folder"), ("bytes", "is not UTF-8 text")]:
        with pytest.raises(InputError, match=message):
            read_yaml(tmp_path / path)

"""Files that are whole or absent, and one reader for all texts."""

import codecs
import errno
import tempfile

import pytest

from megatron_music.errors import InputError
from megatron_music.files import (
    NotText,
    atomic_path,
    make_folder,
    parse_json,
    read_json,
    read_text,
    read_yaml,
    require_writable,
    write_json,
)


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


def test_a_folder_replaces_no_file_and_is_made_in_none(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(InputError, match="file: is a file; name a folder"), atomic_path(tmp_path / "file") as temporary:
        temporary.mkdir()
    for path in (tmp_path / "file", tmp_path / "file" / "deep"):
        for make in (make_folder, lambda folder: write_json(folder / "a.json", {})):
            with pytest.raises(InputError, match=f"{path}: is a file or lies below one; name a folder"):
                make(path)
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="can't be made .File name too long.; name a folder that can be written"):
        make_folder(tmp_path / ("n" * 300))
    assert make_folder(tmp_path / "new" / "deep") == make_folder(tmp_path / "new" / "deep")


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
    (tmp_path / "bytes").write_bytes(b"\xe4\xf6\xfc")
    for path, message in [("none", "no such file"), (".", "is a folder"), ("bytes", "is not UTF-8 text")]:
        with pytest.raises(InputError, match=message):
            read_yaml(tmp_path / path)


SONG = "[verse]\nÜber den Wolken\n月亮\n\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (2 * codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_text_is_the_same_whatever_wrote_it(tmp_path, mark, encoding, end):
    (tmp_path / "a.txt").write_bytes(mark + SONG.replace("\n", end).encode(encoding))
    assert read_text(tmp_path / "a.txt") == SONG


def test_marks_within_joined_files_go_and_what_a_string_holds_stays(tmp_path):
    (tmp_path / "a.txt").write_bytes(2 * (codecs.BOM_UTF8 + b"one\r\n") + "x\ufeffy\u2028z\n".encode())
    assert read_text(tmp_path / "a.txt") == "one\none\nx\ufeffy\u2028z\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Über".encode("latin-1"), r"is not UTF-8 text \(byte 0\); save it as UTF-8, or `iconv -f ENCODING -t UTF-8`"),
        ("月亮 (live)".encode("gb18030"), "is not UTF-8 text"),
        ("さくら".encode("cp932"), "is not UTF-8 text"),
        ("[verse]\nÜber".encode("utf-16-le"), "is UTF-16LE text without its mark; .*`iconv -f UTF-16LE -t UTF-8`"),
        ("[verse]\nla".encode("utf-16-be"), "`iconv -f UTF-16BE -t UTF-8`"),
        (codecs.BOM_UTF16_LE + b"a\0b", "is not UTF-16 text"),
    ],
)
def test_other_encodings_are_refused_with_the_mend(tmp_path, data, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(NotText, match=message):
        read_text(tmp_path / "a.txt")


def test_json_and_yaml_with_marks(tmp_path):
    for name, read in (("a.json", read_json), ("a.yaml", read_yaml)):
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + b'{"a": "\\ufeff"}\r\n')
        assert read(tmp_path / name) == {"a": "\ufeff"}


@pytest.mark.parametrize(("text", "message"), [("[" * 9999, "recursion"), ("9" * 9999, "digits"), ("\n]", "line 8")])
def test_json_that_no_reader_takes_is_told(text, message):
    with pytest.raises(InputError, match=f"a.jsonl.*{message}"):
        parse_json(text, "a.jsonl", first_line=7)


def test_an_error_of_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError) as raised, atomic_path(tmp_path / "model.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "model.bin")
    with pytest.raises(OSError) as raised, atomic_path(tmp_path / "copy"):
        raise OSError(errno.ENOSPC, "No space left on device", "original", None, "copy")
    assert str(raised.value) == f"[Errno 28] No space left on device: '{tmp_path / 'copy'}'"
    with pytest.raises(OSError) as raised, atomic_path(tmp_path / "outer"), atomic_path(tmp_path / "inner"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "inner")
    with pytest.raises(OSError) as raised, atomic_path(tmp_path / "model.bin"):
        (tmp_path / "other").read_bytes()
    assert raised.value.filename == str(tmp_path / "other")
    assert not list(tmp_path.iterdir())


def test_a_place_where_nothing_can_be_written_is_told_before_and_when(tmp_path, monkeypatch):
    require_writable(tmp_path / "new" / "song")
    assert list((tmp_path / "new").iterdir()) == []

    def refuse(prefix, dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    message = r"song: can't be written \(Permission denied\); name a place that can be written"
    with pytest.raises(InputError, match=message):
        require_writable(tmp_path / "song")
    with pytest.raises(InputError, match=message):
        write_json(tmp_path / "song", {})

"""Lists of a checkpoint's files, and what they find."""

import json
import zlib

import pytest

from megatron_music.engine.integrity import LIST, SummedFile, require_whole, size_fault, sum_fault, synced_marks
from megatron_music.engine.integrity import write_list as write
from megatron_music.errors import InputError

CONTENT = {"a": b"x" * 100_000, "b": b"yz" * 30_000, "c": b"", "state.json": b"{}"}


@pytest.fixture
def checkpoint(tmp_path):
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    write(tmp_path, synced_marks(tmp_path, CONTENT))
    return tmp_path


def test_a_file_is_summed_while_it_is_written(tmp_path):
    with SummedFile(tmp_path / "file") as file:
        for part in (b"one", memoryview(b"two"), b"", bytearray(b"three")):
            assert file.write(part) == len(part)
    assert file.mark == (11, zlib.crc32(b"onetwothree"))
    assert synced_marks(tmp_path, ["file"]) == {"file": file.mark}
    assert (tmp_path / "file").read_bytes() == b"onetwothree"


def test_a_whole_checkpoint_has_no_fault(checkpoint):
    assert size_fault(checkpoint) is None
    assert [sum_fault(checkpoint, share, 2) for share in range(2)] == [None, None]
    require_whole(checkpoint)
    listed = json.loads((checkpoint / LIST).read_text())["files"]
    assert listed["b"] == {"bytes": 60_000, "crc32": f"{zlib.crc32(CONTENT['b']):08x}"}


def test_faults_of_size_name_the_file(checkpoint):
    (checkpoint / "b").write_bytes(CONTENT["b"][:-1])
    assert size_fault(checkpoint) == "b has 59,999 bytes where 60,000 were written"
    (checkpoint / "b").unlink()
    assert size_fault(checkpoint) == "b is missing"
    (checkpoint / LIST).write_text("{")
    assert size_fault(checkpoint).startswith("files.json is not JSON")
    (checkpoint / LIST).write_text('{"files": 3}')
    assert size_fault(checkpoint) == "files.json is no list of files"


def test_a_flipped_bit_is_found_in_one_share(checkpoint):
    content = bytearray(CONTENT["b"])
    content[31_415] ^= 4
    (checkpoint / "b").write_bytes(content)
    assert size_fault(checkpoint) is None
    assert [sum_fault(checkpoint, share, 2) for share in range(2)] == [None, "b holds other bytes than were written"]
    with pytest.raises(InputError, match="is damaged: b holds other bytes than were written; choose another"):
        require_whole(checkpoint)


def test_a_checkpoint_without_a_list_needs_its_own_files(tmp_path):
    assert size_fault(tmp_path) == "it is empty"
    for name in (".metadata", "common.pt", "metadata.json"):
        (tmp_path / name).write_bytes(b"0")
    assert size_fault(tmp_path) == "state.json is missing or empty"
    (tmp_path / "state.json").write_bytes(b"{}")
    assert size_fault(tmp_path) is None and sum_fault(tmp_path) is None
    (tmp_path / ".metadata").write_bytes(b"")
    assert size_fault(tmp_path) == ".metadata is missing or empty"

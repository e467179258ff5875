"""What downloads leave in place of weights is told, and nothing in PyTorch's files is run."""

import os
import pickle

import pytest
import torch

from megatron_music.errors import InputError
from megatron_music.weights import load_pickled, require_content

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def told(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_stands_in_place_of_a_file_is_told(tmp_path):
    path = tmp_path / "model.bin"
    told(lambda: require_content(path, "fetch it"), "model.bin: no such file; fetch it")
    path.symlink_to("../../blobs/4d7a2146")
    told(lambda: require_content(path, "fetch it"), "is a link to ../../blobs/4d7a2146, which is not there; fetch it")
    path.unlink()
    path.mkdir()
    told(lambda: require_content(path, "fetch it"), "but a folder")
    path.rmdir()
    path.write_bytes(b"")
    told(lambda: require_content(path, "fetch it"), "it is empty; fetch it")
    path.write_text(POINTER)
    told(lambda: require_content(path, "fetch it"), f"is git-lfs' pointer.*; run `git lfs pull` in {tmp_path}")
    path.write_text("v")
    require_content(path, "fetch it")


class Running:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
def test_tensors_are_read_and_nothing_is_run(tmp_path, is_zip):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(tensors, tmp_path / "whole.bin", _use_new_zipfile_serialization=is_zip)
    found = load_pickled(tmp_path / "whole.bin", "fetch it")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    running = tensors | {"c": Running(tmp_path / "ran")}
    torch.save(running, tmp_path / "running.bin", _use_new_zipfile_serialization=is_zip)
    told(lambda: load_pickled(tmp_path / "running.bin", "fetch it"), "posix.mkdir" if is_zip else "can't be read")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "ran").mkdir()
    with pytest.raises(FileExistsError):  # the file would have run it
        torch.load(tmp_path / "running.bin", weights_only=False)


def test_tensors_are_mapped_from_the_file(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.bin")
    found = load_pickled(tmp_path / "whole.bin", "fetch it")
    with open("/proc/self/maps") as maps:
        mapped = [line.split()[0].split("-") for line in maps if line.rstrip().endswith("whole.bin")]
    address = found["a"].data_ptr()
    assert any(int(first, 16) <= address < int(end, 16) for first, end in mapped)


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda whole: whole[: len(whole) // 2], "its end is missing"),
        (lambda whole: whole[100:], "can't be read as weights"),
        (lambda whole: b"PK\x03\x04 and no more", "its end is missing"),
        (lambda whole: b"<!DOCTYPE html><p>Sign in</p>", "can't be read as weights"),
        (lambda whole: bytes(2000), "can't be read as weights"),
        (lambda whole: pickle.dumps({"a": 1}), "can't be read as weights"),
    ],
    ids=["half", "start is missing", "start alone", "page", "zeros", "pickle"],
)
def test_damaged_files_are_told(tmp_path, content, message):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(content((tmp_path / "a.bin").read_bytes()))
    told(lambda: load_pickled(tmp_path / "a.bin", "fetch it"), f"a.bin: .*{message}.*; fetch the file again")

"""Megatron's indexed format, with megatron-core's own reader and writer as the oracle."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from megatron_music.corpus.indexed import IndexedSource, IndexedWriter
from megatron_music.errors import InputError

LENGTHS = [5, 1, 0, 17, 3]


def random_documents(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [
        (random.integers(0, 83_734, length).astype(np.int32), random.integers(0, 13, length).astype(np.uint8))
        for length in LENGTHS
    ]


def write(prefix: Path, documents: list[tuple[np.ndarray, np.ndarray]]) -> None:
    with IndexedWriter(prefix, {"task": "test"}) as writer:
        for ids, kinds in documents:
            writer.add(ids, kinds)


def test_megatron_reads_what_we_write(tmp_path):
    documents = random_documents()
    write(tmp_path / "v1.5", documents)
    theirs = IndexedDataset(str(tmp_path / "v1.5"))
    assert len(theirs) == len(documents)
    for ours, ids in zip(documents, theirs[0 : len(documents)], strict=True):
        np.testing.assert_array_equal(ours[0], ids)
    np.testing.assert_array_equal(theirs.document_indices, np.arange(len(documents) + 1))


def test_files_equal_megatrons_byte_for_byte(tmp_path):
    documents = random_documents()
    write(tmp_path / "ours", documents)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    for ids, _ in documents:
        builder.add_document(torch.from_numpy(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64])
def test_we_read_what_megatron_writes(tmp_path, dtype):
    documents = [(ids % 60_000, kinds) for ids, kinds in random_documents()]
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for ids, _ in documents:
        builder.add_document(torch.from_numpy(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    (tmp_path / "theirs.kind").write_bytes(b"".join(kinds.tobytes() for _, kinds in documents))
    (tmp_path / "theirs.json").write_text("{}")
    ours = IndexedSource(tmp_path / "theirs")
    assert len(ours) == len(documents) and ours.total_tokens == sum(LENGTHS)
    for index, (ids, kinds) in enumerate(documents):
        read_ids, read_kinds = ours.document(index)
        assert read_ids.dtype == np.int32 and read_kinds.dtype == np.uint8
        np.testing.assert_array_equal(read_ids, ids)
        np.testing.assert_array_equal(read_kinds, kinds)


def test_parts_of_documents_and_pickling(tmp_path):
    documents = random_documents()
    write(tmp_path / "source", documents)
    source = pickle.loads(pickle.dumps(IndexedSource(tmp_path / "source")))
    np.testing.assert_array_equal(source.read(3, 4, 9)[0], documents[3][0][4:9])
    np.testing.assert_array_equal(source.read(3, 4, 9)[1], documents[3][1][4:9])
    with pytest.raises(IndexError):
        source.document(5)


def test_sidecar_counts_tokens_by_kind(tmp_path):
    with IndexedWriter(tmp_path / "source", {"task": "test"}) as writer:
        writer.add(np.array([7, 8, 9]), np.array([0, 1, 1]))
        writer.add(np.array([7, 8, 9]), np.array([0, 2, 2]))
        writer.about["songs_used"] = 3
    assert json.loads((tmp_path / "source.json").read_text()) == {
        "task": "test",
        "songs_used": 3,
        "documents": 2,
        "tokens": 6,
        "tokens_by_kind": {"text": 2, "special": 2, "vocal": 2},
    }


def test_sources_one_behind_another_are_one_source(tmp_path):
    documents = random_documents()
    write(tmp_path / "whole", documents * 2)
    for name, part in (("first", documents[:2]), ("empty", []), ("second", documents[2:] + documents)):
        write(tmp_path / name, part)
    with IndexedWriter(tmp_path / "joined", {"task": "test"}) as writer:
        for name in ("first", "empty", "second"):
            writer.extend(IndexedSource(tmp_path / name))
    for suffix in (".bin", ".idx", ".kind", ".json"):
        assert (tmp_path / f"joined{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_an_error_leaves_the_old_source_and_nothing_else(tmp_path):
    write(tmp_path / "source", random_documents(0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RuntimeError), IndexedWriter(tmp_path / "source") as writer:
        writer.add(np.arange(3), np.zeros(3))
        raise RuntimeError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_killed_writer_leaves_no_source_and_is_in_nobodys_way(tmp_path):
    program = (
        "import os, signal, sys, numpy as np\n"
        "from megatron_music.corpus.indexed import IndexedWriter\n"
        "with IndexedWriter(sys.argv[1]) as writer:\n"
        "    writer.add(np.arange(9), np.zeros(9))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "source")])
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="no such file"):
        IndexedSource(tmp_path / "source")
    write(tmp_path / "source", random_documents())
    assert sorted(os.listdir(tmp_path)) == ["source.bin", "source.idx", "source.json", "source.kind"]


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".kind"])
@pytest.mark.parametrize("kept", [0, 10, -1])
def test_truncated_files_are_one_line_errors(tmp_path, suffix, kept):
    write(tmp_path / "source", random_documents())
    path = tmp_path / f"source{suffix}"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=f"source{suffix}") as raised:
        IndexedSource(tmp_path / "source")
    assert "\n" not in str(raised.value)


def test_a_file_that_shrinks_while_open_is_named(tmp_path):
    write(tmp_path / "source", random_documents())
    source = IndexedSource(tmp_path / "source")
    os.truncate(tmp_path / "source.bin", 10)
    with pytest.raises(InputError, match="source.bin.*shrank"):
        source.document(3)


def test_missing_and_foreign_files_are_one_line_errors(tmp_path):
    write(tmp_path / "source", random_documents())
    (tmp_path / "source.idx").write_bytes(b"x" * 200)
    with pytest.raises(InputError, match="not an index"):
        IndexedSource(tmp_path / "source")
    (tmp_path / "source.kind").unlink()
    with pytest.raises(InputError, match="source.kind: no such file"):
        IndexedSource(tmp_path / "source")


def test_an_empty_source_can_be_written_and_read(tmp_path):
    write(tmp_path / "source", [])
    assert len(IndexedSource(tmp_path / "source")) == 0
    assert len(IndexedDataset(str(tmp_path / "source"), mmap=False)) == 0

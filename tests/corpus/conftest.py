"""Small synthetic sources."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_music.corpus.indexed import IndexedWriter


@pytest.fixture
def write_source() -> Callable[..., Path]:
    """Writes a source whose ids are ``first``, ``first + 1``, ... and whose kinds are the ids modulo 5."""

    def write(prefix: Path, lengths: list[int], first: int = 0, vocabulary: str = "one") -> Path:
        with IndexedWriter(prefix, {"vocabulary": {"name": "synthetic", "fingerprint": vocabulary}}) as writer:
            for length in lengths:
                ids = np.arange(first, first + length, dtype=np.int32)
                writer.add(ids, (ids % 5).astype(np.uint8))
                first += length
        return prefix

    return write

"""Results in files: made once, and again where the file is damaged."""

import numpy as np
import pytest

from megatron_music.evaluation.kept import kept_array, kept_json


@pytest.mark.parametrize(
    ("keep", "made", "damaged"),
    [(kept_json, {"a": [0.1, None]}, b"{"), (kept_json, [], b"\xff"), (kept_array, np.arange(6.0).reshape(2, 3), b"")],
)
def test_what_was_made_is_kept_and_a_damaged_file_made_again(tmp_path, keep, made, damaged):
    path, calls = tmp_path / "store" / "kept.npy", []

    def make():
        calls.append(1)
        return made

    for _ in range(3):
        np.testing.assert_array_equal(keep(path, make), made)
    assert len(calls) == 1
    whole = path.read_bytes()
    for content in (damaged, whole[:-1] if keep is kept_array else whole[:1]):
        path.write_bytes(content)
        np.testing.assert_array_equal(keep(path, make), made)
        assert path.read_bytes() == whole
    assert len(calls) == 3 and [file.name for file in path.parent.iterdir()] == ["kept.npy"]


def test_what_can_not_be_made_leaves_nothing(tmp_path):
    for keep in (kept_json, kept_array):
        with pytest.raises(ZeroDivisionError):
            keep(tmp_path / "kept", lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []

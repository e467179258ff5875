"""The watchdog over real processes that hang."""

import re

import pytest
import watchdog_workers

from megatron_music.engine.processes import launch
from megatron_music.exits import Hung


def test_a_hang_leaves_the_stacks_of_all_and_one_line_that_says_who_hangs_and_where(tmp_path, capfd):
    with pytest.raises(Hung, match="process . of 3 found that no step was done for too long"):
        launch(watchdog_workers.hang, 3, tmp_path)
    error = capfd.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("hang: no progress for 2 s and more; ")]
    assert "rank 2: no answer: stopped, or stuck outside of Python" in line
    assert re.search(r"rank 1: after step 7: the next one, wait \(threading.py:\d+\)", line)
    assert re.search(r"rank 0: after step 7: the next one, all_reduce \(distributed_c10d.py:\d+\)", line)
    assert line.endswith(f"stacks: {tmp_path}")
    stacks = {f"rank_{rank}.txt": name for rank, name in
              enumerate(["_wait_for_others", "_hang_in_python", "_hang_outside_of_python"])}  # fmt: skip
    for file, name in stacks.items():
        assert f"in {name}\n" in (tmp_path / file).read_text()

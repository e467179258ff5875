"""Preflight over real processes, and what it makes of what they found."""

import socket

import preflight_workers
import pytest

from megatron_music.cluster.preflight import BadMachine, Health, judge, preflight, report
from megatron_music.engine.processes import launch
from megatron_music.errors import InputError


def test_a_process_that_computes_wrongly_is_named(tmp_path, capfd):
    node = socket.gethostname()
    with pytest.raises(BadMachine) as caught:
        launch(preflight_workers.multiply_wrongly_on_rank_1, 2, tmp_path)
    assert f"{node} cpu (rank 1): 10 of 10 matrix products are wrong" in str(caught.value)
    heads, *rows = capfd.readouterr().out.splitlines()
    assert heads.split() == "rank node device TFLOP/s memory GiB node GB/s next GB/s all GB/s disk MB/s fit".split()
    rows = [row.split() for row in rows]
    assert [row[:3] for row in rows] == [["0", node, "cpu"], ["1", node, "cpu"]] and rows[1][-1] == "no"
    for row in rows:
        products, memory, within, to_next, over_all, disk = row[3:-1]
        assert memory == "0.0625" and to_next == "-"  # there is one node
        assert min(map(float, (products, within, over_all, disk))) > 0
    assert not list(tmp_path.iterdir())


def test_what_is_half_as_fast_as_the_others_is_not_fit():
    rates = [40.0, 41.0, 19.0, 40.0]
    found = [Health(rank, f"node{rank}", "cuda:0", products_tflops=600, next_gbs=rate, disk_mbs=1)
             for rank, rate in enumerate(rates)]  # fmt: skip
    judged = judge(found)
    assert [health.faults for health in judged] == [(), (), ("19 GB/s to the next node, where the median is 40",), ()]
    on_cpus = [Health(health.rank, health.node, "cpu", next_gbs=health.next_gbs) for health in found]
    assert judge(on_cpus) == on_cpus
    assert [line.split()[-1] for line in report(judged).splitlines()[1:]] == ["yes", "yes", "no", "yes"]


def test_a_folder_that_is_none_is_bad_input(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="run: is a file or lies below one; name a folder"):
        preflight(tmp_path / "run")

"""`predict compare`: runs and ladders side by side, or the codecs that a file names."""

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.scaling.side_by_side import read_runs, runs_table


def compare(paths: Sequence[str | Path], out: str | Path | None, device: str = "cpu", as_json: bool = False) -> str:
    """What is printed; the page, pictures and JSON lie in ``out`` then.

    Args:
        paths: folders of ladders and runs, or one file of a bake-off (``contenders``), whose ``out`` is by default a
            folder beside it, named like it.

    Raises:
        InputError: a folder or the file is no good.
    """
    from megatron_music.scaling.comparison_page import write_comparison, write_runs

    files = [Path(path) for path in paths if Path(path).is_file()]
    if not files:
        runs = read_runs(paths)
        if out is not None:
            page = write_runs(runs, Path(out))
        if as_json:
            return json.dumps([run.as_dict() for run in runs], indent=2)
        return runs_table(runs) + (f"\nwritten: {page}" if out is not None else "")
    if len(paths) > 1:
        raise InputError(files[0], "is a file beside other paths", "compare one file of codecs, or folders of runs")
    from megatron_music.scaling.bake_off import run_bake_off
    from megatron_music.scaling.comparison import comparison_text

    folder = files[0].with_suffix("") if out is None else Path(out)
    comparison = run_bake_off(files[0], folder, device)
    page = write_comparison(comparison, folder)
    return json.dumps(comparison, indent=2) if as_json else f"{comparison_text(comparison)}\n\nwritten: {page}"

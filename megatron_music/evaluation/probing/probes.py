"""Probes of a model's hidden layers on labelled clips: how well genre, key, tags or emotion can be read from them."""

from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import Interval
from megatron_music.evaluation.probing.clips import SPLITS, Clip, Task, read_clips, tasks_of
from megatron_music.evaluation.probing.features import FeatureReader
from megatron_music.evaluation.probing.heads import choose_probe
from megatron_music.evaluation.probing.metrics import (
    MAIN,
    TITLES,
    constant_outputs,
    interval,
    is_reported,
    main_score,
    scores,
)
from megatron_music.evaluation.result import Measure, register
from megatron_music.generation.models import ModelFolder

_NOTE = (
    "A linear or one-hidden-layer probe on frozen mean hidden states, chosen on the validation clips; of the test "
    "clips. MARBLE's constrained track, with a smaller grid."
)


class ProbeSet:
    """Labelled clips, read and checked before any network is; raises InputError."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.clips: list[Clip] = read_clips(self.path)
        self.tasks: list[Task] = tasks_of(self.clips, self.path)

    @property
    def cache(self) -> Path:
        """The folder beside the file in which features are kept."""
        return self.path.with_name(f"{self.path.name}.features")


def probe_model(
    model: str | Path,
    probes: ProbeSet,
    weights: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Probes all tasks of a set.

    Returns:
        ``tasks`` by name: ``type``, ``test`` (the measures of the test clips), ``intervals`` of 95% of some of them,
        ``constant`` (the same measures of a probe that does not listen), ``clips`` by split, ``labels``, the chosen
        ``layer``, ``head`` and ``learning_rate``, its measure on the validation clips, ``valid``, and that of the best
        probe of each layer, ``valid_by_layer``. ``problems``: a sentence for each clip that could not be read.

    Raises:
        InputError: model or codec can't be read, or a task has lost a split to clips that can't be read.
    """
    reader = FeatureReader(ModelFolder.open(model), weights, probes.cache, device, dtype)
    features = reader.read(probes.clips, probes.path.parent)
    found = {}
    for task in probes.tasks:
        readable = task.only(features.clips)
        try:
            readable.check_splits(probes.path)
            _check_measurable(readable, probes.path)
        except InputError as error:
            what = f"{error.what} ({features.problems[0]})" if features.problems else error.what
            raise InputError(error.where, what, error.mend) from None
        rows = np.searchsorted(features.clips, readable.clips)
        found[task.name] = _probe(readable, features.layers_NLH[rows], seed, device)
    return {"tasks": found, "problems": features.problems}


def measures_of(found: dict[str, Any]) -> dict[str, float | Interval]:
    """The numbers of ``probe_model`` that stand for the model, registered as measures by task."""
    numbers: dict[str, float | Interval] = {}
    for name, told in found["tasks"].items():
        for measure, value in told["test"].items():
            if is_reported(told["type"], measure):
                of = f"probe_{name}_{measure}"
                register(**{of: Measure(title=f"probe of {name}: {TITLES[measure]}", better="higher", note=_NOTE)})
                ends = told["intervals"].get(measure)
                numbers[of] = Interval(value=value, low=ends[0], high=ends[1]) if ends else value
    return numbers


def _check_measurable(task: Task, where: object) -> None:
    """Raises InputError where a split has too few different clips for the measure that a probe is chosen by."""
    for split in ("valid", "test"):
        targets = task.targets[task.split == split]
        if main_score(task, targets, np.zeros((len(targets), len(task.labels)))) is None:
            what = f"the split {split} has too few different clips for {TITLES[MAIN[task.kind]]}"
            raise InputError(f"{where}: {task.name}", what, "add clips to it")


def _probe(task: Task, layers_NLH: np.ndarray, seed: int, device: str) -> dict[str, Any]:
    chosen = choose_probe(layers_NLH, task, seed, device)
    truth = {split: task.targets[task.split == split] for split in SPLITS}
    test = scores(task, truth["test"], chosen.outputs)
    ends = {name: interval(task, truth["test"], chosen.outputs, name, seed) for name in test}
    return {
        "type": task.kind,
        "test": test,
        "intervals": {name: list(between) for name, between in ends.items() if between},
        "constant": scores(task, truth["test"], constant_outputs(task, truth["train"], len(truth["test"]))),
        "clips": {split: len(targets) for split, targets in truth.items()},
        "labels": len(task.labels),
        "layer": chosen.layer,
        "head": chosen.head,
        "learning_rate": chosen.learning_rate,
        "valid": chosen.valid,
        "valid_by_layer": chosen.by_layer,
    }

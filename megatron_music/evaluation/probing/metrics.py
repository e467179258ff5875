"""The measures of probes: accuracy, refined key accuracy, ROC-AUC and average precision of tags, R2 of emotions."""

from functools import cache
from types import ModuleType

import numpy as np

from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import share_interval
from megatron_music.evaluation.probing.clips import KEYS, Task, TaskKind

MAIN = {"classes": "accuracy", "key": "refined_accuracy", "tags": "auc", "emotion": "r2"}
"""The measure by which a probe of each kind is chosen on the validation split."""
TITLES = {
    "accuracy": "accuracy",
    "refined_accuracy": "refined accuracy",
    "auc": "ROC-AUC",
    "ap": "average precision",
    "r2": "R2",
    "r2_valence": "R2 of valence",
    "r2_arousal": "R2 of arousal",
}
RESAMPLES = 200


def scores(task: Task, targets: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
    """The measures of a task's kind.

    Args:
        targets: see ``Task``, of N clips.
        outputs: (N, labels), the larger the likelier; of emotions the numbers themselves.

    Returns:
        ``accuracy``; ``refined_accuracy`` and ``accuracy`` of keys; ``auc`` and ``ap``, means over the tags that some
        of the clips have and some have not; ``r2``, the mean of ``r2_valence`` and ``r2_arousal``. What can't be had
        of so few clips is absent.
    """
    if task.kind == "tags":
        return _of_tags(targets, outputs)
    if task.kind == "emotion":
        return _of_emotions(targets, outputs, task.labels)
    chosen = outputs.argmax(axis=1)
    accuracy = {"accuracy": float((chosen == targets).mean())}
    if task.kind == "classes":
        return accuracy
    return {"refined_accuracy": refined_key_accuracy(targets, chosen)} | accuracy


def main_score(task: Task, targets: np.ndarray, outputs: np.ndarray) -> float | None:
    """The measure of ``MAIN`` alone, which is quick; None where it can't be had of so few clips."""
    if task.kind == "tags":
        return _auc(targets, outputs)
    return scores(task, targets, outputs).get(MAIN[task.kind])


def refined_key_accuracy(targets: np.ndarray, chosen: np.ndarray) -> float:
    """Mean of mir_eval's weighted score: 1 for the key, 0.5 a fifth above, 0.3 relative, 0.2 parallel, else 0."""
    return float(_key_scores()[targets, chosen].mean())


@cache
def _key_scores() -> np.ndarray:
    weighted = mir_eval_key().weighted_score
    return np.array([[weighted(true, ours) for ours in KEYS] for true in KEYS])


def interval(
    task: Task, targets: np.ndarray, outputs: np.ndarray, measure: str, seed: int = 0
) -> tuple[float, float] | None:
    """95% interval of a measure: Wilson's of accuracy, otherwise of 200 draws of as many clips with replacement.

    None where the measure can't be had of clips that are drawn so.
    """
    if measure == "accuracy":
        found = share_interval(outputs.argmax(axis=1) == targets, np.ones(len(targets)))
        return found.low, found.high
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, len(targets), len(targets)) for _ in range(RESAMPLES))
    found = [scores(task, targets[at], outputs[at]) for at in drawn]
    values = [one[measure] for one in found if np.isfinite(one.get(measure, np.nan))]
    return tuple(np.quantile(values, (0.025, 0.975)).tolist()) if values else None


def constant_outputs(task: Task, targets: np.ndarray, count: int) -> np.ndarray:
    """What a probe that does not listen says of ``count`` clips: shares, or means, of the training targets."""
    one_hot = np.eye(len(task.labels))[targets] if targets.ndim == 1 else targets
    return np.tile(one_hot.mean(axis=0), (count, 1))


def mir_eval_key() -> ModuleType:
    """mir_eval's module of keys; raises InputError where the package is missing."""
    try:
        from mir_eval import key
    except ImportError:
        raise InputError("mir_eval", "is not installed", "pip install 'megatron-music[evaluation]'") from None
    return key


def _of_tags(targets: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
    auc = _auc(targets, outputs)
    if auc is None:
        return {}
    told = _told(targets)
    return {"auc": auc, "ap": float(_sklearn_metrics().average_precision_score(targets[:, told], outputs[:, told]))}


def _told(targets: np.ndarray) -> np.ndarray:
    """Tags that some of the clips have and some have not."""
    return np.flatnonzero(targets.any(axis=0) & ~targets.all(axis=0))


def _auc(targets: np.ndarray, outputs: np.ndarray) -> float | None:
    """Mean area under the ROC curve, by Mann and Whitney's ranks; a tie is half in order."""
    from scipy.stats import rankdata

    told = _told(targets)
    if not len(told):
        return None
    ranks, has = rankdata(outputs[:, told], axis=0), targets[:, told] > 0
    positive = has.sum(axis=0)
    above = (ranks * has).sum(axis=0) - positive * (positive + 1) / 2
    return float((above / (positive * (len(has) - positive))).mean())


def _of_emotions(targets: np.ndarray, outputs: np.ndarray, labels: list[str]) -> dict[str, float]:
    if len(targets) < 2:
        return {}
    of = _sklearn_metrics().r2_score(targets, outputs, multioutput="raw_values")
    return {"r2": float(np.mean(of))} | {f"r2_{label}": float(r2) for label, r2 in zip(labels, of, strict=True)}


def _sklearn_metrics() -> ModuleType:
    try:
        from sklearn import metrics
    except ImportError:
        raise InputError("scikit-learn", "is not installed", "pip install 'megatron-music[evaluation]'") from None
    return metrics


def is_reported(kind: TaskKind, measure: str) -> bool:
    """Whether the measure stands in the report's table: all but the parts that another is the mean of."""
    return measure == MAIN[kind] or measure == "ap" or measure.startswith("r2_")

"""Training of probes: every layer at once, each with its own small network, chosen on the validation split.

MARBLE's constrained track: the features are frozen, and a probe is one hidden layer of 512 units (ReLU, dropout 0.2)
over one layer's features or over a learned weighted sum of all of them; batches of 64. Here one linear layer stands
beside it, with which small sets do better. Of MARBLE's six learning rates from 5e-5 to 1e-2 two are tried: features are
standardised here and training stops when the validation split no longer gains, so that slower ones only take longer.

Probes of different layers share no weight, their losses are added, and Adam scales every weight by its own gradients:
trained side by side they are what they would be alone, and a grid of 4 x 2 x (layers + 2) probes takes 8 trainings.
"""

import copy
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import nn

from megatron_music.evaluation.probing.clips import Task
from megatron_music.evaluation.probing.metrics import main_score
from megatron_music.progress import track

HEADS = ("linear", "mlp")
LEARNING_RATES = (1e-3, 1e-2)
HIDDEN, DROPOUT, BATCH = 512, 0.2, 64
MOST_EPOCHS, PATIENCE = 100, 10
WEIGHTED = "weighted"
_TINY = 1e-5


@dataclass(frozen=True)
class Chosen:
    """The probe that was best on the validation split.

    Attributes:
        layer: number of the layer, 0 for the embedding, or ``weighted``.
        valid: its main measure on the validation split; ``by_layer`` the best one of each layer.
        outputs: of the test clips, (N, labels).
    """

    layer: str
    head: str
    learning_rate: float
    valid: float
    by_layer: dict[str, float]
    outputs: np.ndarray


class _Heads(nn.Module):
    """G probes side by side: (N, G, H) to (N, G, labels); with ``weighted`` one probe over a sum of L layers."""

    def __init__(self, layers: int, features: int, labels: int, head: str, weighted: bool):
        super().__init__()
        groups = 1 if weighted else layers
        self.mixture = nn.Parameter(torch.zeros(layers)) if weighted else None
        sizes = [features, HIDDEN, labels] if head == "mlp" else [features, labels]
        # torch's initialisation of a linear layer: uniform within 1 / sqrt(inputs).
        bounds = [size**-0.5 for size in sizes[:-1]]
        self.weights = nn.ParameterList(
            torch.empty(groups, inner, outer).uniform_(-bound, bound)
            for inner, outer, bound in zip(sizes[:-1], sizes[1:], bounds, strict=True)
        )
        self.biases = nn.ParameterList(
            torch.empty(groups, 1, outer).uniform_(-bound, bound)
            for outer, bound in zip(sizes[1:], bounds, strict=True)
        )

    def forward(self, layers_NLH: torch.Tensor) -> torch.Tensor:
        if self.mixture is not None:
            layers_NLH = torch.einsum("nlh,l->nh", layers_NLH, self.mixture.softmax(0))[:, None]
        hidden = layers_NLH.transpose(0, 1)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if number:
                hidden = nn.functional.dropout(hidden.relu(), DROPOUT, self.training)
            hidden = torch.baddbmm(bias, hidden, weight)
        return hidden.transpose(0, 1)


def choose_probe(layers_NLH: np.ndarray, task: Task, seed: int = 0, device: str = "cpu") -> Chosen:
    """Trains the grid on the training split and takes the probe that is best on the validation split.

    Args:
        layers_NLH: features of the task's clips in their order.
    """
    features = {of: torch.from_numpy(layers_NLH[task.split == of]).to(device) for of in ("train", "valid", "test")}
    mean, deviation = features["train"].mean(0), features["train"].std(0, correction=0)
    features = {of: (values - mean) / (deviation + _TINY) for of, values in features.items()}
    best: Chosen | None = None
    by_layer: dict[str, float] = {}
    runs = list(product(HEADS, LEARNING_RATES, (False, True)))
    for head, rate, weighted in track(runs, f"probes of {task.name}"):
        names = [WEIGHTED] if weighted else [str(layer) for layer in range(layers_NLH.shape[1])]
        valid_G, outputs_GNC = _train(features, task, head, rate, weighted, seed)
        for name, valid, outputs_NC in zip(names, valid_G, outputs_GNC, strict=True):
            by_layer[name] = max(by_layer.get(name, -np.inf), valid)
            if best is None or valid > best.valid:
                best = Chosen(name, head, rate, valid, by_layer, outputs_NC)
    return best


def _train(
    features: dict[str, torch.Tensor], task: Task, head: str, rate: float, weighted: bool, seed: int
) -> tuple[list[float], list[np.ndarray]]:
    """Main measure on the validation split at each probe's best epoch, and what it says of the test clips then."""
    generator = torch.Generator().manual_seed(seed)
    scale, shift = _scaling(task)
    targets = torch.from_numpy((task.targets[task.split == "train"] - shift) / scale)
    targets = (targets.long() if task.targets.ndim == 1 else targets.float()).to(features["train"].device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = _Heads(*features["train"].shape[1:], len(task.labels), head, weighted).to(targets.device)
        optimizer = torch.optim.Adam(heads.parameters(), lr=rate)
        best: list[float] = []
        outputs: list[np.ndarray] = []
        waited = 0
        for _ in range(MOST_EPOCHS):
            heads.train()
            for batch in torch.randperm(len(targets), generator=generator).split(BATCH):
                optimizer.zero_grad()
                _loss(task, heads(features["train"][batch]), targets[batch]).backward()
                optimizer.step()
            said = _said(heads, features["valid"]) * scale + shift
            reached = [_main(task, said[:, group]) for group in range(said.shape[1])]
            better = [not best or now > best[group] for group, now in enumerate(reached)]
            waited = 0 if any(better) else waited + 1
            if any(better):
                of_test = _said(heads, features["test"]) * scale + shift
                best = best or [-np.inf] * len(reached)
                outputs = outputs or [of_test[:, group] for group in range(len(reached))]
                for group in np.flatnonzero(better):
                    best[group], outputs[group] = reached[group], copy.copy(of_test[:, group])
            if waited == PATIENCE:
                break
    return best, outputs


def _scaling(task: Task) -> tuple[np.ndarray | int, np.ndarray | int]:
    """Deviation and mean of emotions in the training split, so that one learning rate fits any scale."""
    if task.kind != "emotion":
        return 1, 0
    train = task.targets[task.split == "train"]
    return train.std(axis=0) + _TINY, train.mean(axis=0)


def _loss(task: Task, outputs_NGC: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed over the probes, each one's mean over clips and labels."""
    groups = outputs_NGC.shape[1]
    if task.kind in ("classes", "key"):
        flat = outputs_NGC.transpose(0, 1).flatten(0, 1)
        return nn.functional.cross_entropy(flat, targets.repeat(groups)) * groups
    spread = targets[:, None].expand_as(outputs_NGC)
    if task.kind == "tags":
        return nn.functional.binary_cross_entropy_with_logits(outputs_NGC, spread) * groups
    return nn.functional.mse_loss(outputs_NGC, spread) * groups


def _said(heads: _Heads, features_NLH: torch.Tensor) -> np.ndarray:
    heads.eval()
    with torch.inference_mode():
        return heads(features_NLH).double().cpu().numpy()


def _main(task: Task, outputs_NC: np.ndarray) -> float:
    """The main measure of the validation split; the least there is where it can't be had of so few clips."""
    score = main_score(task, task.targets[task.split == "valid"], outputs_NC)
    return -np.inf if score is None else score

"""For the benchmarks of training: small recipes, random corpora, and what a step of the real loop spends beside
forward, backward and optimizer.

The trainer runs with its stream, its loader and its metrics over a corpus of random ids on disk. Its engine is timed
from within: megatron-core's schedule (forward, backward and the reduction of gradients), less the table of losses by
kind, and the clipping and update. The rest of the time from one step to the next is the framework's own.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megatron_music.corpus.blend import run_stream
from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.engine import engine as engine_module
from megatron_music.engine.engine import Engine
from megatron_music.recipe.recipe import Recipe, Watch
from megatron_music.training.callbacks.metrics import StepMetrics
from megatron_music.training.loop import Callback, StepReport, Trainer
from megatron_music.training.metrics_log import MetricsLog
from megatron_music.training.recovery import Recovery
from megatron_music.training.run_folder import RunFolder
from megatron_music.training.troubles import Troubles
from megatron_music.vocabulary.kinds import LOSS_GROUPS
from megatron_music.vocabulary.vocabulary import CodecRange, Vocabulary


@dataclass
class Stopwatch:
    """Seconds spent within ``timed`` functions: by the clock, or on a GPU as its own queue took them."""

    seconds: float = 0.0

    def timed(self, function: Callable, sign: int = 1) -> Callable:
        """``function``, whose time is added, or taken off with ``sign`` -1."""

        def run(*arguments, **options):
            mark = self._mark()
            result = function(*arguments, **options)
            self._spans.append((sign, mark, self._mark()))
            return result

        return run

    def read(self) -> float:
        """Seconds since the last reading; waits for the GPU."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            spans = [(sign, begin.elapsed_time(end) / 1000) for sign, begin, end in self._spans]
        else:
            spans = [(sign, end - begin) for sign, begin, end in self._spans]
        self._spans.clear()
        return sum(sign * length for sign, length in spans)

    def __post_init__(self):
        self._spans: list[tuple] = []

    @staticmethod
    def _mark():
        if not torch.cuda.is_available():
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Clock(Callback):
    """A callback that reads the stopwatch between steps, every ``every`` of them."""

    def __init__(self, stopwatch: Stopwatch, every: int):
        self.stopwatch, self.every, self.shares = stopwatch, every, []
        self._since = None

    def after_step(self, _trainer: Trainer, report: StepReport) -> None:
        """Notes the share of the time since the last reading that was the framework's own."""
        if (report.step.index + 1) % self.every:
            return
        inside, now = self.stopwatch.read(), time.perf_counter()
        if self._since is not None:
            self.shares.append(1 - inside / (now - self._since))
        self._since = time.perf_counter()


def own_share(recipe: Recipe, vocabulary_size: int, engine: Engine, rounds: int, steps: int) -> list[float]:
    """The framework's share of the time of ``steps`` steps, once a round; the first round, not counted, warms up."""
    clock = Clock(Stopwatch(), steps)
    with tempfile.TemporaryDirectory() as folder, timed_engine(engine, clock.stopwatch):
        looped = over_random_corpus(recipe, vocabulary_size, Path(folder), (rounds + 1) * steps)
        log = MetricsLog(RunFolder(Path(folder)), 0)
        callbacks = [StepMetrics(log, looped.watch.log_every_steps), clock]
        recovery = Recovery(log, RunFolder(Path(folder)), looped.skip, Troubles())
        Trainer(looped, Vocabulary.load(looped.vocabulary), engine, run_stream(looped), callbacks, recovery).run()
        log.close()
    return clock.shares


@contextlib.contextmanager
def timed_engine(engine: Engine, stopwatch: Stopwatch) -> Iterator[None]:
    """Within it, ``stopwatch`` counts the engine's forward and backward passes and its updates."""
    untimed = engine._schedule, engine_module.clip_and_update, engine_module._add_by_kind
    engine._schedule = stopwatch.timed(engine._schedule)
    engine_module.clip_and_update = stopwatch.timed(engine_module.clip_and_update)
    engine_module._add_by_kind = stopwatch.timed(engine_module._add_by_kind, sign=-1)
    try:
        yield
    finally:
        engine._schedule, engine_module.clip_and_update, engine_module._add_by_kind = untimed


def small_recipe(
    *, hidden: int, layers: int, heads: int, ffn: int, context: int, sequences: int, key_value_heads: int | None = None
) -> Recipe:
    """A small Llama in FP32, at a constant rate over the source ``random`` with ``sequences`` a step."""
    network = {
        "hidden_size": hidden,
        "layers": layers,
        "attention_heads": heads,
        "key_value_heads": key_value_heads or heads,
        "ffn_hidden_size": ffn,
        "position_limit": context,
    }
    phase = {
        "name": "all",
        "tokens": 10**9,
        "context_tokens": context,
        "batch_sequences": sequences,
        "learning_rate": 1e-4,
        "mixture": {"random": 1},
    }
    paths = {"name": "benchmark", "vocabulary": "none", "corpus": "none", "run": "none", "precision": "fp32"}
    return Recipe.parse({**paths, "network": network, "phases": [phase]}, "benchmark.yaml")


def over_random_corpus(recipe: Recipe, vocabulary_size: int, folder: Path, steps: int) -> Recipe:
    """The recipe's first phase for ``steps`` steps over a corpus of random ids, which it writes into ``folder``."""
    phase = recipe.phases[0]
    random = np.random.default_rng(1)
    specials = {"<EOD>": 1, "<SOA>": 2, "<EOA>": 3, "<random>": 4}
    codec = CodecRange("random", "<random>", 5, 1, vocabulary_size - 5)
    vocabulary = Vocabulary("random", 1, specials, {"random": codec}, vocabulary_size, vocabulary_size, "random")
    vocabulary.save(folder / "vocabulary.yaml")
    kinds = [kind for group in LOSS_GROUPS.values() for kind in group]
    with IndexedWriter(folder / "random", {"vocabulary": "random"}) as writer:
        # The whole is read again where the run is longer.
        while writer.tokens < min(steps * phase.step_tokens, 50_000_000):
            length = int(random.integers(1_000, 20_000))
            ids = random.integers(0, vocabulary_size, length, dtype=np.int32)
            writer.add(ids, random.choice(kinds, length).astype(np.uint8))
    content = recipe.model_dump(mode="json") | {
        "corpus": str(folder),
        "vocabulary": str(folder / "vocabulary.yaml"),
        "phases": [phase.model_dump(mode="json") | {"tokens": steps * phase.step_tokens, "mixture": {"random": 1}}],
        "watch": Watch(log_every_steps=recipe.watch.log_every_steps).model_dump(mode="json"),
        "groups": {},
        "most_epochs": {},
    }
    return Recipe.parse(content, "benchmark.yaml")


def told(shares: list[float]) -> str:
    """The shares in words."""
    return (
        f"the framework's own share of a step: {statistics.median(shares):.2%} (median of {len(shares)} rounds, "
        f"{min(shares):.2%} to {max(shares):.2%})"
    )

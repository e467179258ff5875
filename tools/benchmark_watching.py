"""What watching costs: steps with all of it, at the recipe's defaults, beside steps without any, in turns.

    python tools/benchmark_watching.py

With it: the guard, its decisions read by the host, losses by kind and task, the stopwatch, metrics every 10 steps with
the gradient's norm by part, written to metrics.jsonl and TensorBoard. Without it: the same loop, data and network, the
gradient's norm clipped. Processor time of all threads, so that other programs on the machine count less. Where they
still disturb the difference more than it is large, the second figure holds: the processor time within the functions
that watch, over that of the steps (the gradient's norm, which clipping needs too, is counted as watching there). One
process: what a collective costs is not in it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from training_loop import over_random_corpus, small_recipe

from megatron_music.corpus.blend import run_stream
from megatron_music.engine import engine as engine_module
from megatron_music.engine import optimizer as optimizer_module
from megatron_music.engine import processes
from megatron_music.engine.engine import Engine
from megatron_music.engine.optimizer import Update
from megatron_music.training.callbacks.metrics import StepMetrics
from megatron_music.training.loop import Trainer
from megatron_music.training.metrics_log import MetricsLog
from megatron_music.training.recovery import Recovery
from megatron_music.training.run_folder import RunFolder
from megatron_music.training.troubles import Troubles
from megatron_music.vocabulary.vocabulary import Vocabulary

VOCABULARY = 4096


class Unguarded:
    """A guard that lets every update pass without a look."""

    def judge(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros((), device=loss.device), loss

    def forget(self) -> None:
        pass


class Unread(Recovery):
    """Nobody reads decisions."""

    def note(self, step: int, update: Update) -> None:
        pass


class Stopped:
    """No time is taken."""

    def lap(self, part: str) -> None:
        pass

    def restart(self) -> None:
        pass


class Inside:
    """Processor time of this thread within ``timed`` functions."""

    def __init__(self):
        self.seconds, self._depth = 0.0, 0

    def timed(self, function: Callable) -> Callable:
        def run(*arguments, **options):
            began, self._depth = time.thread_time(), self._depth + 1
            result = function(*arguments, **options)
            self._depth -= 1
            if not self._depth:  # what a timed function calls is in its time already
                self.seconds += time.thread_time() - began
            return result

        return run

    def time_all(self, *places: tuple[object, str]) -> None:
        """Times these functions, each named by where it is kept, from now on."""
        for owner, name in places:
            setattr(owner, name, self.timed(getattr(owner, name)))


def main() -> None:
    """Runs the turns and prints the medians of their seconds a step, and of the rounds' ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"hidden": 256, "layers": 4, "context": 512, "rounds": 10, "steps": 10, "threads": 1}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = {"hidden": options.hidden, "layers": options.layers, "heads": 4, "ffn": options.hidden * 11 // 4}
    recipe = small_recipe(**sizes, context=options.context, sequences=4)
    processes.join(recipe.layout)
    engine = Engine(recipe, VOCABULARY)
    with tempfile.TemporaryDirectory() as name:
        recipe = over_random_corpus(recipe, VOCABULARY, Path(name), 2 * (options.rounds + 1) * options.steps)
        log = MetricsLog(RunFolder(Path(name)), 0)
        arguments = recipe, Vocabulary.load(recipe.vocabulary), engine, run_stream(recipe)
        rule, folder = recipe.skip, RunFolder(Path(name))
        bare = Trainer(*arguments, [], Unread(log, folder, rule, Troubles()))
        bare.tasks, bare.stopwatch = {}, Stopped()
        metrics = StepMetrics(log, recipe.watch.log_every_steps)
        watched = Trainer(*arguments, [metrics], Recovery(log, folder, rule, Troubles()))
        inside = Inside()
        inside.time_all(
            (engine.guard, "judge"), (watched.recovery, "note"), (watched.recovery, "next_step"),
            (metrics, "after_step"), (watched.stopwatch, "lap"), (engine_module, "_add_by_task"),
            (optimizer_module, "_square"),
        )  # fmt: skip
        guards = {id(bare): Unguarded(), id(watched): engine.guard}
        seconds: dict[int, list[float]] = {id(bare): [], id(watched): []}
        shares: list[float] = []
        done = 0
        for _ in range(options.rounds + 1):
            for trainer in (bare, watched):
                engine.guard = guards[id(trainer)]
                engine.before_reduction = lambda stopwatch=trainer.stopwatch: stopwatch.lap("forward_backward")
                began, inside.seconds = time.process_time(), 0.0
                trainer.run(done, done + options.steps)
                seconds[id(trainer)].append((time.process_time() - began) / options.steps)
                done += options.steps
                if trainer is watched:
                    shares.append(inside.seconds / options.steps / seconds[id(trainer)][-1])
        log.close()
    without, with_it = (seconds[id(trainer)][1:] for trainer in (bare, watched))  # the first round warms up
    ratios = sorted(b / a - 1 for a, b in zip(without, with_it, strict=True))
    print(f"a step without watching {statistics.median(without):.4f} s, with it {statistics.median(with_it):.4f} s of "
          f"processor time (medians of {options.rounds} turns of {options.steps})")  # fmt: skip
    print(f"cost: {statistics.median(ratios):.2%} (by round {ratios[0]:.2%} to {ratios[-1]:.2%})")
    shares = sorted(shares[1:])
    print(f"within the functions that watch: {statistics.median(shares):.2%} (by round {shares[0]:.2%} to "
          f"{shares[-1]:.2%})")  # fmt: skip
    processes.leave()


if __name__ == "__main__":
    main()

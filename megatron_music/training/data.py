"""Micro-batches of a step for one process: which samples of the stream are its share."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from megatron_music.corpus.stream import SampleStream
from megatron_music.engine.engine import Batch
from megatron_music.recipe.phases import PhaseSpan, Step, step_at
from megatron_music.training.marks import Marks


def tasks_of(stream: SampleStream) -> dict[str, list[str]]:
    """The tasks of a stream in the order of their columns in a table of losses, each with its sources.

    A source that was built without a task is one of its own.
    """
    tasks: dict[str, list[str]] = {}
    for name, source in stream.sources.items():
        tasks.setdefault(source.source.sidecar.get("task") or name, []).append(name)
    return tasks


def batches_of(
    stream: SampleStream, first: int, count: int, size: int, rank: int, copies: int, marks: Marks
) -> list[Batch]:
    """Share of process ``rank`` of ``copies`` in the samples ``[first, first + count)``, ``size`` to a micro-batch.

    The samples are dealt in runs of one micro-batch, so that a step's micro-batches, taken over all processes in turn,
    are the samples in their order whatever ``copies`` is. ``marks`` are those of their phase.
    """
    columns = {name: column for column, names in enumerate(tasks_of(stream).values()) for name in names}
    batches = []
    for start in range(first + rank * size, first + count, copies * size):
        samples = [(index, stream.sample(index)) for index in range(start, start + size)]
        ids, kinds = (np.stack([getattr(sample, name) for _, sample in samples]) for name in ("ids", "kinds"))
        counted = [marks.counted(index, sample) for index, sample in samples]
        documents = [marks.document_lengths(sample) for _, sample in samples]
        batches.append(
            Batch(
                ids.astype(np.int64),
                kinds,
                None if counted[0] is None else np.stack(counted),
                None if documents[0] is None else tuple(documents),
                np.array([columns[sample.source] for _, sample in samples]),
            )
        )
    return batches


class Loader:
    """Reads the micro-batches of the next step, to where ``device`` copies from, while the current one computes."""

    def __init__(
        self,
        stream: SampleStream,
        spans: Sequence[PhaseSpan],
        marks: Sequence[Marks],
        rank: int,
        copies: int,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ):
        self.stream, self.spans, self.marks = stream, spans, marks
        self.rank, self.copies, self.device = rank, copies, device
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[list[Batch]]] | None = None

    def batches(self, step: Step) -> list[Batch]:
        """This process' micro-batches of ``step``."""
        if self._ahead is not None and self._ahead[0] == step.index:
            batches = self._ahead[1].result()
        else:
            batches = self._read(step)
        following = step.index + 1
        if following < self.spans[-1].last_step:
            self._ahead = following, self._reader.submit(self._read, step_at(self.spans, following))
        return batches

    def close(self) -> None:
        """Ends the reading thread."""
        self._reader.shutdown(cancel_futures=True)

    def _read(self, step: Step) -> list[Batch]:
        size, marks = step.span.phase.micro_batch_sequences, self.marks[step.span.index]
        share = (step.first_sequence, step.batch_sequences, size, self.rank, self.copies)
        return [batch.pinned(self.device) for batch in batches_of(self.stream, *share, marks)]

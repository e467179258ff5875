"""One process' share of a model in training: a forward and backward pass, an optimizer step, checkpoints."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_music.engine import checkpoint, context
from megatron_music.engine.guard import StepGuard
from megatron_music.engine.hardware import check_fp8
from megatron_music.engine.layers import packed_documents
from megatron_music.engine.lora import seed_dropout
from megatron_music.engine.network import build_chunks, distribute, transformer_config
from megatron_music.engine.optimizer import (
    COUNTED,
    KINDS,
    Update,
    build_optimizer,
    clip_and_update,
    gradients_by_part,
    set_constants,
)
from megatron_music.engine.saving import Saver, Saving
from megatron_music.engine.sizes import Sizes
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """Micro-batch of whole sequences.

    Attributes:
        ids: int64 (sequences, context + 1); inputs are [:, :-1], labels [:, 1:].
        kinds: uint8 (sequences, context + 1).
        counted: which tokens count in the loss as labels, bool (sequences, context + 1); None where all do.
        documents: of each sequence the tokens of each document in its inputs, to which attention is kept; None where it
            runs across them.
        tasks: number of each sequence's task, int64 (sequences,); None where losses by task are not asked for.
    """

    ids: np.ndarray
    kinds: np.ndarray
    counted: np.ndarray | None = None
    documents: tuple[tuple[int, ...], ...] | None = None
    tasks: np.ndarray | None = None

    def pinned(self, device: torch.device) -> "Batch":
        """The same in memory from which a GPU copies while the host goes on; itself where ``device`` is the CPU."""
        if device.type != "cuda":
            return self
        # A thread of its own begins on the machine's first GPU.
        with torch.cuda.device(device):
            pinned = [
                None if array is None else torch.from_numpy(array).pin_memory().numpy()
                for array in (self.ids, self.kinds, self.counted, self.tasks)
            ]
            return Batch(*pinned[:3], self.documents, pinned[3])


class Engine:
    """The recipe's network on this process' place in the layout, with its optimizer.

    Call ``processes.join(recipe.layout)`` first.

    Args:
        trains: False keeps neither gradients nor optimizer: only ``load`` of weights and ``logits`` can be called.
    """

    def __init__(self, recipe: Recipe, vocabulary_size: int, trains: bool = True):
        self._options, self._lora, self._seed = recipe.optimizer, recipe.lora, recipe.seed
        check_fp8(recipe)
        self.config = transformer_config(recipe)
        self.chunks = build_chunks(recipe, self.config, vocabulary_size)
        self.optimizer = None
        if trains:
            self._prepare_training(recipe)
        self.vocabulary_size = vocabulary_size
        on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self._schedule = get_forward_backward_func()
        self._context_group = parallel_state.get_context_parallel_group()
        self.before_reduction: Callable[[], None] = lambda: None
        """Called once the last backward pass of a step is done, before this process waits for others' gradients."""
        self.guard = StepGuard(recipe.skip, self.device)
        self._sizes = Sizes(self.config, self.chunks)
        self._saver = Saver()
        self._weights_are_behind = False

    def _prepare_training(self, recipe: Recipe) -> None:
        self.chunks = distribute(recipe, self.config, self.chunks)
        self.optimizer = build_optimizer(recipe.optimizer, self.chunks, bf16=self.config.bf16)
        self.config.grad_scale_func = self.optimizer.scale_loss
        finalize = self.config.finalize_model_grads_func

        def finalize_after_notice(*arguments, **options) -> None:
            self.before_reduction()
            finalize(*arguments, **options)

        self.config.finalize_model_grads_func = finalize_after_notice
        if self.chunks[0].ddp_config.overlap_param_gather:
            starts = [chunk.start_param_sync for chunk in self.chunks]
            self.config.param_sync_func = starts if len(starts) > 1 else starts[0]

    @property
    def data_rank(self) -> int:
        """Which share of every batch this process takes."""
        return parallel_state.get_data_parallel_rank()

    @property
    def data_processes(self) -> int:
        """Into how many shares every batch is cut."""
        return parallel_state.get_data_parallel_world_size()

    def forward_backward(
        self, batches: Sequence[Batch], train: bool = True, step: int = 0, tasks: int = 0
    ) -> torch.Tensor:
        """Runs all micro-batches of this process; with ``train`` also backward and the reduction.

        ``step`` decides what the dropout of adapters draws, so that a step repeats itself after a resume.

        The loss is the mean over all tokens of the step that count, on whichever process and in whichever micro-batch.

        Returns the loss table of this process: (2, KINDS + tasks), sums of nats and counts of tokens by kind, and by
        task where ``tasks`` says how many there are, counted in the loss or not; zeros where another process holds the
        end of the pipeline or the same tensor-parallel result.
        Nothing waits for a GPU.
        """
        table = torch.zeros(2, KINDS + tasks, dtype=torch.float64, device=self.device)
        weight = self._weight_of_a_counted_token(batches) if train else None

        def forward_step(iterator, chunk):
            batch = next(iterator)
            ids = torch.from_numpy(batch.ids).to(self.device, non_blocking=True)
            kinds = torch.from_numpy(batch.kinds).to(self.device, non_blocking=True)
            # With RoPE no layer asks for positions.
            labels, packed = self._own(ids[:, 1:]).contiguous(), packed_documents(batch.documents)
            losses = chunk(self._own(ids[:, :-1]), None, None, labels=labels, packed_seq_params=packed)

            def mean_loss(losses: torch.Tensor) -> tuple[torch.Tensor, dict]:
                # The schedule divides the loss in place: the table must not share its memory.
                _add_by_kind(table, losses.detach(), self._own(kinds[:, 1:]))
                if tasks:
                    _add_by_task(table, losses.detach(), torch.from_numpy(batch.tasks))
                # The schedule multiplies by the processes that share a sequence, for losses summed over them; the mean
                # over all processes, which the reduction of gradients takes, is already that of the whole sequence.
                if weight is None:
                    return losses.float().mean() / self._context_group.size(), {}
                counted = torch.from_numpy(batch.counted).to(self.device, non_blocking=True)
                counted = self._own(counted[:, 1:])
                nats = (losses.float() * counted).sum()
                table[0, COUNTED] += nats.detach()
                table[1, COUNTED] += counted.sum()
                return nats * weight, {}

            return losses, mean_loss

        sequences, context_tokens = batches[0].ids.shape[0], batches[0].ids.shape[1] - 1
        for chunk in self.chunks:
            chunk.train(train)
        if train:
            for chunk in self.chunks:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
            if self._lora is not None and self._lora.dropout:
                seed_dropout(self._seed, step)
            self._sizes.prepare_training(sequences, context_tokens, len(batches))
            self._weights_are_behind = False
        else:
            self._catch_up()
        prepared = contextlib.nullcontext() if train else self._sizes.evaluating(sequences, context_tokens)
        with torch.set_grad_enabled(train), prepared:
            self._schedule(
                forward_step_func=forward_step,
                # Every run of layers reads the batches on its own: the first for the ids, the last for the labels.
                data_iterator=[iter(batches) for _ in self.chunks],
                model=self.chunks,
                num_microbatches=len(batches),
                seq_length=context_tokens,
                micro_batch_size=sequences,
                forward_only=not train,
            )
        if parallel_state.get_tensor_model_parallel_rank() > 0:
            table.zero_()
        return table

    def _weight_of_a_counted_token(self, batches: Sequence[Batch]) -> torch.Tensor | None:
        """What makes the mean that schedule and data parallelism take the mean over the step's counted tokens.

        They divide by micro-batches and processes, which may hold unequal numbers of counted tokens. The result is that
        of megatron-core's ``calculate_per_token_loss``, without its pass over all gradients. None where all count.
        """
        if batches[0].counted is None:
            return None
        counted = sum(int(batch.counted[:, 1:].sum()) for batch in batches)
        total = torch.tensor([counted], dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
        # A step without a counted token has a loss of 0.
        return (len(batches) * self.data_processes / total.clamp_(min=1)).float()

    def step(self, learning_rate: float, loss_table: torch.Tensor, with_parts: bool = False) -> Update:
        """Clips and updates the parameters, unless the step is one to leave out (``guard``); nothing waits for a GPU.

        ``loss_table`` is what ``forward_backward`` gave on this process; ``with_parts`` asks for the gradient's norm by
        part of the network.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        by_part = gradients_by_part(self.optimizer, self.chunks) if with_parts else None
        self._weights_are_behind = True
        return clip_and_update(self.optimizer, self._options.clip_norm, loss_table, self.guard, by_part)

    def logits(self, ids_BT: np.ndarray, documents: tuple[tuple[int, ...], ...] | None = None) -> torch.Tensor:
        """Logits of every position, (B, T, vocabulary) FP32, on every process; B x T ids, the same on all of them.

        T must be a multiple of what the layout cuts the sequence into: the tensor-parallel size with sequence
        parallelism, times twice the context-parallel size. ``documents`` are as in ``Batch``.
        """
        collected: list[torch.Tensor] = []
        # An interleaved schedule wants as many micro-batches as stages: the same one, of which the first counts.
        copies = parallel_state.get_pipeline_model_parallel_world_size() if len(self.chunks) > 1 else 1

        def forward_step(iterator, chunk):
            ids = torch.from_numpy(next(iterator)).to(self.device)
            logits = chunk(self._own(ids), None, None, packed_seq_params=packed_documents(documents))
            return logits, lambda logits, non_loss_data: collected.append(logits)

        self._catch_up()
        for chunk in self.chunks:
            chunk.eval()
        with torch.no_grad(), self._sizes.evaluating(*ids_BT.shape):
            self._schedule(
                forward_step_func=forward_step,
                data_iterator=[iter([ids_BT] * copies) for _ in self.chunks],
                model=self.chunks,
                num_microbatches=copies,
                seq_length=ids_BT.shape[1],
                micro_batch_size=ids_BT.shape[0],
                forward_only=True,
                collect_non_loss_data=True,
            )
        shape = (*ids_BT.shape, self.vocabulary_size)
        if collected:
            # (batch, own part of the sequence, share of the vocabulary) on every tensor-parallel process.
            share = collected[0].float().contiguous()
            shares = [torch.empty_like(share) for _ in range(parallel_state.get_tensor_model_parallel_world_size())]
            torch.distributed.all_gather(shares, share, group=parallel_state.get_tensor_model_parallel_group())
            logits = context.gather(torch.cat(shares, dim=-1), 1, self._context_group)
        else:
            logits = torch.empty(shape, dtype=torch.float32, device=self.device)
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            torch.distributed.broadcast(logits, last, group=parallel_state.get_pipeline_model_parallel_group())
        return logits

    def start_save(
        self,
        folder: Path,
        complete: Callable[[Path], None] | None = None,
        afterwards: Callable[[], None] | None = None,
    ) -> Saving:
        """Copies what is trained, and the optimizer, and writes it as the distributed checkpoint ``folder`` beside.

        All processes call it; see ``Saver.start``.
        """
        self._catch_up()
        pieces, common = checkpoint.pieces_of(self.chunks, self.optimizer, check=not self._saver.has_agreed)
        return self._saver.start(folder, pieces, common, complete, afterwards)

    def save(self, folder: Path) -> None:
        """The same, and waits until it is written; raises InputError where that fails."""
        fault = self.start_save(folder).wait()
        if fault is not None:
            raise InputError(folder, f"can't be written: {fault}", "make room or mend it and run again")

    def finish_saves(self) -> None:
        """Waits until this process writes and removes nothing any longer."""
        self._saver.finish()

    def _catch_up(self) -> None:
        """Gathers the weights that other processes have updated, where that is left to the next training step."""
        if self._weights_are_behind and self.chunks[0].ddp_config.overlap_param_gather:
            for chunk in self.chunks:
                chunk.start_param_sync(force_sync=True)
        self._weights_are_behind = False

    def load_base(self, folder: Path) -> None:
        """Reads a checkpoint of a whole network below this one's adapters; all processes call it."""
        checkpoint.load_base(folder, self.chunks)
        if self.optimizer is not None:
            self.optimizer.reload_model_params()

    def load(self, folder: Path, with_optimizer: bool = True) -> None:
        """Reads a distributed checkpoint of the same network, written on any layout; all processes call it.

        A network with adapters reads what it trains, and nothing of what lies below: ``load_base`` does that.
        """
        checkpoint.load(folder, self.chunks, self.optimizer if with_optimizer else None)
        self._weights_are_behind = False
        if self.optimizer is None:
            return
        set_constants(self._options, self.optimizer)
        if not with_optimizer:
            self.optimizer.reload_model_params()

    def _own(self, whole_BT: torch.Tensor) -> torch.Tensor:
        """This process' part of whole sequences."""
        return context.own_chunks(whole_BT, 1, self._context_group)


def _add_by_task(table: torch.Tensor, losses: torch.Tensor, tasks: torch.Tensor) -> None:
    columns = tasks.to(losses.device, non_blocking=True) + KINDS
    table[0].index_add_(0, columns, losses.double().sum(dim=1))
    table[1].index_add_(0, columns, torch.full_like(columns, losses.shape[1], dtype=torch.float64))


def _add_by_kind(table: torch.Tensor, losses: torch.Tensor, kinds: torch.Tensor) -> None:
    index = kinds.reshape(-1).long()
    table[0].index_add_(0, index, losses.reshape(-1).double())
    table[1].index_add_(0, index, torch.ones_like(index, dtype=torch.float64))

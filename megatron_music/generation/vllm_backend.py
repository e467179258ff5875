"""vLLM as what runs the networks: its kernels and its paged cache under this project's sampling.

vLLM reads rows of tokens and asks a logits processor of ours about each new one. The processor sees all rows of a step
at once, so that a song and its unconditional twin, two requests to vLLM, are guided and sampled together by the code
that samples for the decoder; it draws the ids itself and leaves vLLM one id a row to choose from. A section's prompt
begins with the song so far, which vLLM's prefix cache holds but for a last started block.

A song whose two rows did not come in the same step (the second prompt had no room in it, or the cache was full and
vLLM put one off) is asked for again, both rows anew; what the cache still holds is not read again.
"""

import gc
import itertools
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from megatron_music.errors import InputError
from megatron_music.files import read_json
from megatron_music.generation.decoder import cache_bytes
from megatron_music.generation.models import ModelFolder
from megatron_music.generation.plan import Plan, Stage1Song
from megatron_music.generation.request import Watch
from megatron_music.generation.sampling import SamplingSettings, normalisers
from megatron_music.generation.stage1 import Choir, Guess, Voice
from megatron_music.generation.stage2 import WindowForm, fitting_windows, in_batches
from megatron_music.vocabulary.vocabulary import Vocabulary

BLOCK_TOKENS = 32
# One engine, in this process, that tells nobody of its use. The interface of logits processors is that of vLLM's first
# model runner; the second one's is said to change still.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
# Threads are torch's own; errors alone are told.
DEFAULT_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
HOW_TO_INSTALL = "install it as docs/generation.md tells, or leave this option out"

Answer = Callable[[list[int], torch.Tensor], Sequence[int]]
"""Is called with rows and their float32 logits (rows, vocabulary), and gives the next id of each."""


class VllmBackend:
    """Both stages on vLLM.

    Args:
        dtype: "auto" is the type of the stored weights.
        keep: engines stay for the next songs, both stages' side by side, where they are large enough.

    Raises:
        InputError: vLLM is not installed, or was built for another device.
    """

    def __init__(self, folders: Sequence[ModelFolder], device: str, dtype: str, keep: bool = False):
        os.environ.update(DEFAULT_ENVIRONMENT | dict(os.environ) | ENVIRONMENT)
        try:
            from vllm.platforms import current_platform
        except ImportError as error:
            raise InputError("--backend", f"vLLM can't be imported ({error})", HOW_TO_INSTALL) from None
        if device != current_platform.device_type:
            found = f"this vLLM runs on {current_platform.device_type or 'no device here'}, not on {device}"
            raise InputError("--backend", found, "name another --device, or install vLLM for this one")
        self._folders, self._dtype, self._keep = folders, dtype, keep
        self._engines: dict[int, Engine] = {}

    def sing(self, plans: Sequence[Plan], settings: SamplingSettings, watch: Watch | None = None) -> list[Stage1Song]:
        """See ``stage1.sing``."""
        choir = _VllmChoir(self._folders[0].positions, plans, settings, watch or Watch())
        with self._engine(0, choir.most_tokens()) as choir.engine:
            return choir.sing()

    def refine(
        self,
        tracks: Sequence[np.ndarray],
        form: WindowForm,
        windows_at_once: int | None = None,
        watch: Watch | None = None,
    ) -> list[np.ndarray]:
        """See ``stage2.refine``."""
        folder = self._folders[1]
        windows = sum(-(-len(codes) // form.frames) for codes in tracks)
        config, dtype = _config(folder), _dtype(folder, self._dtype)
        most = windows_at_once or fitting_windows(config, dtype.itemsize, form)
        # The last id is not read, but vLLM wants a place for it.
        with self._engine(1, [1 + form.most_tokens] * max(1, min(most, windows))) as engine:

            def refine_batch(windows: list[np.ndarray], steps: Iterable[int]) -> list[np.ndarray]:
                return _Windows(engine, folder.vocabulary, form, windows).refine(steps)

            return in_batches(tracks, form, most, refine_batch, watch or Watch())

    def _engine(self, stage: int, row_tokens: Sequence[int]) -> "Engine":
        if stage not in self._engines or not self._engines[stage].holds(row_tokens):
            for number in [stage] if self._keep else [*self._engines]:
                if number in self._engines:
                    self._engines.pop(number).close()
            folder = self._folders[stage]
            self._engines[stage] = Engine(folder, _dtype(folder, self._dtype), row_tokens)
        return self._engines[stage]


class Engine:
    """A vLLM engine whose rows are shown ids, and whose next ids are somebody else's answer.

    As a context manager it is empty again at its end.

    Args:
        row_tokens: for each row the tokens that it holds at most.

    Raises:
        InputError: vLLM can't run the folder's model with caches of this size.
    """

    def __init__(self, folder: ModelFolder, dtype: torch.dtype, row_tokens: Sequence[int]):
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform

        config = _config(folder)
        self._rows, self._longest, self._blocks = len(row_tokens), max(row_tokens), _blocks(row_tokens)
        # A row may be full and have an id drawn behind it; vLLM counts that one too.
        positions = self._longest + 1
        self._answer: Answer | None = None
        self._names: dict[int, str] = {}
        self._numbers = itertools.count()
        arguments = EngineArgs(
            model=str(folder.path),
            skip_tokenizer_init=True,
            dtype=str(dtype).removeprefix("torch."),
            generation_config="vllm",
            hf_overrides={"max_position_embeddings": max(positions, config.max_position_embeddings)},
            max_model_len=positions,
            max_num_seqs=self._rows,
            # A prompt is read in one step, so that logits are always those of a prompt's end.
            enable_chunked_prefill=False,
            max_num_batched_tokens=positions + self._rows,
            block_size=BLOCK_TOKENS,
            kv_cache_memory_bytes=cache_bytes(config, BLOCK_TOKENS * self._blocks, dtype.itemsize),
            # The caches' size is given; this share of the memory would only have to be free at the start.
            gpu_memory_utilization=0.01,
            enable_prefix_caching=True,
            async_scheduling=False,
            # Compiling for a processor takes a compiler and minutes.
            enforce_eager=current_platform.is_cpu(),
            disable_log_stats=True,
            logits_processors=[_processor(self)],
        )
        try:
            self._engine = LLMEngine.from_engine_args(arguments)
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(folder.path, f"vLLM can't run it ({error})", "sing fewer songs at once") from error

    def holds(self, row_tokens: Sequence[int]) -> bool:
        """Whether it has room for such rows."""
        return (
            len(row_tokens) <= self._rows and max(row_tokens) <= self._longest and _blocks(row_tokens) <= self._blocks
        )

    def show(self, row: int, ids: Sequence[int]) -> None:
        """Lets a row hold ``ids`` and nothing else, and its next id be asked for."""
        from vllm import SamplingParams

        self.withdraw([row])
        parameters = SamplingParams(
            temperature=0, max_tokens=self._longest, ignore_eos=True, detokenize=False, extra_args={"row": row}
        )
        self._names[row] = f"{row}-{next(self._numbers)}"
        self._engine.add_request(self._names[row], {"prompt_token_ids": list(ids)}, parameters)

    def withdraw(self, rows: Iterable[int]) -> None:
        """Ends rows, if they are there; their cache stays until its room is needed."""
        names = [self._names.pop(row) for row in rows if row in self._names]
        if names:
            self._engine.abort_request(names)

    def step(self, answer: Answer) -> None:
        """Reads what rows were shown, or their last ids; ``answer`` is asked for the next id of each of these rows."""
        self._answer = answer
        self._engine.step()
        if self._answer is not None:
            raise RuntimeError("no row fits into the cache")

    def answer(self, rows: list[int], logits_RV: torch.Tensor) -> Sequence[int]:
        """Called by the logits processor in the course of a step."""
        ids, self._answer = self._answer(rows, logits_RV), None
        return ids

    def close(self) -> None:
        """Frees the memory."""
        self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.withdraw([*self._names])


def _processor(engine: Engine) -> type:
    """A logits processor of vLLM that leaves each row the id that the engine's answer gives it."""
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates

    class Answered(LogitsProcessor):
        def __init__(self, *_: object):
            self._rows: dict[int, int] = {}

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update) -> None:
            process_dict_updates(self._rows, batch_update, lambda parameters, *_: parameters.extra_args["row"])

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            places = sorted(self._rows)
            ids = engine.answer([self._rows[place] for place in places], logits[places])
            logits[places] = -torch.inf
            logits[places, torch.as_tensor(ids, device=logits.device)] = 0
            return logits

    return Answered


class _VllmChoir(Choir):
    """Songs whose rows are requests to an engine.

    Attributes:
        engine: to be set before the songs are sung.
    """

    engine: Engine

    def __init__(self, positions: int, plans: Sequence[Plan], settings: SamplingSettings, watch: Watch):
        super().__init__(positions, plans, settings, watch)
        self._held: dict[int, list[int]] = {}

    def most_tokens(self) -> list[int]:
        """Of each row."""
        most_new = self.settings.max_new_tokens
        return [
            min(self.positions, tokens)
            for voice in self.voices
            for tokens in [voice.plan.most_tokens(most_new), 1 + most_new][: self.rows_each]
        ]

    def _length(self, voice: Voice) -> int:
        return len(self._held.get(voice.row, ()))

    def _show(self, voice: Voice, ids: list[int], audio: Sequence[int], anew: bool) -> None:
        self._held[voice.row] = ids if anew else self._held.get(voice.row, []) + ids
        for twin in self._rows(voice)[1:]:
            self._held[twin] = [*voice.segment.opening[-1:], *audio]
        self._ask(voice)

    def _ask(self, voice: Voice) -> None:
        for row in self._rows(voice):
            self.engine.show(row, self._held[row])

    def _advance(self, voices: Sequence[Voice]) -> None:
        self.engine.step(lambda rows, logits_RV: self._sampled(voices, rows, logits_RV))
        for voice in voices:
            if voice.guesses:
                self._take(voice)
            else:
                self._ask(voice)

    def _sampled(self, voices: Sequence[Voice], rows: list[int], logits_RV: torch.Tensor) -> list[int]:
        """The next id of each row; a row whose other one is missing gets any, since it is asked for again."""
        known = None if self.settings.repetition_penalty == 1 else normalisers(logits_RV).cpu()
        places = {row: place for place, row in enumerate(rows)}
        ids = [0] * len(rows)
        for voice in voices:
            found = [places[row] for row in self._rows(voice) if row in places]
            if len(found) == len(self._rows(voice)):
                self._sample(voice, logits_RV[found], None if known is None else known[found])
                for place in found:
                    ids[place] = voice.guesses[-1].id
        return ids

    def _sample(self, voice: Voice, logits_RV: torch.Tensor, normaliser: torch.Tensor | None) -> None:
        position = len(voice.segment.audio)
        allowed = voice.plan.allowed(position, self.settings.min_new_tokens)
        if sum(map(len, allowed)) == 1:
            voice.add(Guess(allowed[0].start))
            return
        logits = torch.cat([logits_RV[:, ids.start : ids.stop] for ids in allowed], dim=1).cpu()
        seen = torch.cat([voice.seen[ids.start : ids.stop] for ids in allowed])
        guess = Guess(-1, False, allowed, None, logits, seen, voice.drawn_at(position))
        guess.id = self._chosen(voice, guess, normaliser)
        voice.add(guess)

    def _take(self, voice: Voice) -> None:
        """Tells of the id just sampled, which vLLM goes on with unless the section ends or the context is full."""
        id, rows = voice.guesses[-1].id, self._rows(voice)
        self._tell(voice)
        if voice.segment is None:
            self.engine.withdraw(rows)
        elif self._length(voice) == self.positions:
            self._reread(voice)
        else:
            for row in rows:
                self._held[row].append(id)


class _Windows:
    """A batch of windows of stage 2, each a row."""

    def __init__(self, engine: Engine, vocabulary: Vocabulary, form: WindowForm, windows: list[np.ndarray]):
        self._engine, self._form, self._grammar = engine, form, form.grammar(vocabulary)
        self._coarse = [form.codec.ids(window[None])[0].tolist() for window in windows]
        self._said: list[list[int]] = [[] for _ in windows]
        first, last = (
            [vocabulary.special(name) for name in names] for names in (("<SOA>", "<stage_1>"), ("<stage_2>",))
        )
        for row, ids in enumerate(self._coarse):
            engine.show(row, first + ids + last)

    def refine(self, steps: Iterable[int]) -> list[np.ndarray]:
        """Codes (codebooks, frames) of each window; ``steps`` are the frames of the longest, which is the first."""
        for frame in steps:
            while len(self._said[0]) < (frame + 1) * self._grammar.period:
                self._step()
        while not all(self._whole(row) for row in range(len(self._said))):
            self._step()
        return [self._codes(row) for row in range(len(self._said))]

    def _whole(self, row: int) -> bool:
        return len(self._said[row]) == len(self._coarse[row]) * self._grammar.period

    def _step(self) -> None:
        self._engine.step(self._answer)
        self._engine.withdraw([row for row in range(len(self._said)) if self._whole(row)])

    def _answer(self, rows: list[int], logits_RV: torch.Tensor) -> list[int]:
        """Codebook 0 as it is given, and the most probable id of every other codebook."""
        period, ids = self._grammar.period, [0] * len(rows)
        due: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            due.setdefault(len(self._said[row]) % period, []).append(place)
        for position, places in due.items():
            if position == 0 and self._form.repeats_codebook_0:
                found = [self._coarse[rows[place]][len(self._said[rows[place]]) // period] for place in places]
            else:
                valid = self._grammar.allowed(position)[0]
                found = (valid.start + logits_RV[places, valid.start : valid.stop].argmax(dim=-1)).tolist()
            for place, id in zip(places, found, strict=True):
                ids[place] = id
                self._said[rows[place]].append(id)
        return ids

    def _codes(self, row: int) -> np.ndarray:
        ids_KT = np.array(self._said[row]).reshape(-1, self._grammar.period).T
        if not self._form.repeats_codebook_0:
            ids_KT = np.concatenate([[self._coarse[row]], ids_KT])
        return np.concatenate([self._form.codec.codes(ids_KT[k : k + 1], k) for k in range(self._form.codebooks)])


def _config(folder: ModelFolder):
    from transformers import LlamaConfig

    return LlamaConfig.from_dict(read_json(folder.path / "config.json"))


def _dtype(folder: ModelFolder, dtype: str) -> torch.dtype:
    """The type to run in: the one named, or that of the stored weights, which vLLM would make 16 bits wide."""
    if dtype == "auto":
        config = read_json(folder.path / "config.json")
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return getattr(torch, dtype)


def _blocks(row_tokens: Sequence[int]) -> int:
    """Blocks of the cache that rows take; one more is vLLM's own."""
    return 1 + sum(tokens // BLOCK_TOKENS + 1 for tokens in row_tokens)

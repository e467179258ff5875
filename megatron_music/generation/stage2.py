"""Stage 2: from the codebook-0 codes of each track to all codebooks, greedily, in windows of 6 s.

A window is read as training writes it: `<SOA><stage_1>` codebook-0 ids `<stage_2>`, then frame by frame the forced
codebook-0 id (unless the model was trained without it) and the most probable id of each further codebook. Windows of
both tracks, tails included, are the rows of one batch whose caches live from frame to frame; only the ids of the
codebook that is due are scored.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from megatron_music.documents.residual import MOST_CODEBOOKS, ResidualOptions
from megatron_music.errors import InputError
from megatron_music.generation.decoder import LlamaDecoder, cache_bytes
from megatron_music.generation.models import ModelFolder
from megatron_music.generation.request import Watch
from megatron_music.progress import track
from megatron_music.vocabulary.grammar import ResidualGrammar
from megatron_music.vocabulary.vocabulary import CodecRange, Vocabulary

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

CACHE_BYTES = 4 * 2**30
"""Memory of the caches, which decides how many windows stand side by side where the caller does not say."""
MOST_WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class WindowForm:
    """The form of the stage-2 documents that a model was trained on.

    Attributes:
        codec: whose codes they are.
        codebooks: codebooks of the second part, codebook 0 included.
        repeats_codebook_0: whether the second part holds codebook 0 as well.
        frames: of a window.
    """

    codec: CodecRange
    codebooks: int
    repeats_codebook_0: bool = True
    frames: int = 300

    @classmethod
    def of(cls, folder: ModelFolder, codec: CodecRange) -> "WindowForm":
        """As the folder's ``documents.json`` tells it, YuE's where it has none, in windows that its positions hold.

        Raises InputError where the model has too few positions for one frame.
        """
        options = ResidualOptions(**folder.tasks.get("residual", ({},))[0])
        codebooks = options.codebooks or min(MOST_CODEBOOKS, codec.codebooks)
        repeats = options.repeat_codebook_0
        # Three special ids, each frame once, and each frame again with its codebooks; the last id is not read.
        per_frame = 1 + (codebooks if repeats else codebooks - 1)
        frames = min(round(options.window_s * options.frames_per_second), (folder.positions - 2) // per_frame)
        if frames < 1:
            raise InputError(folder.path, f"{folder.positions} positions hold no stage-2 frame", "choose another model")
        return cls(codec, codebooks, repeats, frames)

    @property
    def most_tokens(self) -> int:
        """Tokens of a window that are read at most."""
        return 2 + self.frames * (1 + self.codebooks)

    def grammar(self, vocabulary: Vocabulary) -> ResidualGrammar:
        """Of the ids behind ``<stage_2>``."""
        return ResidualGrammar(
            vocabulary, self.codec, self.codebooks, first_codebook=0 if self.repeats_codebook_0 else 1
        )


def refine(
    folder: ModelFolder,
    network: "LlamaForCausalLM",
    tracks: Sequence[np.ndarray],
    form: WindowForm,
    windows_at_once: int | None = None,
    watch: Watch | None = None,
) -> list[np.ndarray]:
    """Adds the residual codebooks to codebook-0 codes.

    Args:
        tracks: codes of codebook 0, one array (frames,) a track, of any length; those of several songs as well.
        windows_at_once: rows of a batch; None takes as many as ``CACHE_BYTES`` hold, at most ``MOST_WINDOWS_AT_ONCE``.

    Returns:
        int16 codes (codebooks, frames) of each track; row 0 is what was given.

    Raises:
        Stopped: ``watch.stop`` was set.
    """

    def refine_batch(windows: list[np.ndarray], steps: Iterable[int]) -> list[np.ndarray]:
        return _refine_batch(network, folder.vocabulary, form, windows, steps)

    fitting = fitting_windows(network.config, network.lm_head.weight.element_size(), form)
    return in_batches(tracks, form, windows_at_once or fitting, refine_batch, watch or Watch())


def in_batches(
    tracks: Sequence[np.ndarray],
    form: WindowForm,
    windows_at_once: int,
    refine_batch: Callable[[list[np.ndarray], Iterable[int]], list[np.ndarray]],
    watch: Watch,
) -> list[np.ndarray]:
    """Cuts tracks into windows, the longest first, and joins what ``refine_batch`` makes of them.

    Args:
        refine_batch: gets windows and the frames that it shall go through one by one; gives their codes.
    """
    places = [(index, start) for index, codes in enumerate(tracks) for start in range(0, len(codes), form.frames)]
    # Windows of one length stand side by side, so that their prompts are read together.
    places.sort(key=lambda place: -len(tracks[place[0]][place[1] : place[1] + form.frames]))
    refined = [np.zeros((form.codebooks, len(codes)), dtype=np.int16) for codes in tracks]
    batches = _evenly(places, windows_at_once)
    for number, batch in enumerate(batches, start=1):
        windows = [tracks[index][start : start + form.frames] for index, start in batch]
        steps = _watched(len(windows[0]), f"stage 2: batch {number} of {len(batches)}, frames", watch)
        for (index, start), codes_KT in zip(batch, refine_batch(windows, steps), strict=True):
            refined[index][:, start : start + codes_KT.shape[1]] = codes_KT
    return refined


def _watched(frames: int, description: str, watch: Watch) -> Iterator[int]:
    for frame in track(range(frames), description, frames):
        watch.check()
        yield frame
        watch.on_frame(frame + 1, frames)


def fitting_windows(config: "LlamaConfig", element_bytes: int, form: WindowForm) -> int:
    """Windows whose caches fit into ``CACHE_BYTES``; at least one, at most ``MOST_WINDOWS_AT_ONCE``."""
    window_bytes = cache_bytes(config, form.most_tokens, element_bytes)
    return min(MOST_WINDOWS_AT_ONCE, max(1, CACHE_BYTES // window_bytes))


def _evenly(places: list, most: int) -> list[list]:
    """Cuts a list into as few parts of at most ``most`` items as there can be, their sizes differing by at most 1."""
    parts = -(-len(places) // most)
    edges = [len(places) * part // parts for part in range(parts + 1)]
    return [places[first:last] for first, last in zip(edges, edges[1:], strict=False)]


def _refine_batch(
    network: "LlamaForCausalLM",
    vocabulary: Vocabulary,
    form: WindowForm,
    windows: list[np.ndarray],
    steps: Iterable[int],
) -> list[np.ndarray]:
    """Codes (codebooks, frames) of windows that are sorted by length, the longest first."""
    codec, rows, frames = form.codec, len(windows), len(windows[0])
    grammar = form.grammar(vocabulary)
    decoder = LlamaDecoder(network, rows, 2 + frames * (1 + grammar.period))
    coarse_RT = np.stack([np.resize(codec.ids(window[None])[0], frames) for window in windows])
    opening = [vocabulary.special("<SOA>"), vocabulary.special("<stage_1>")]
    for length in sorted({len(window) for window in windows}):
        group = [row for row, window in enumerate(windows) if len(window) == length]
        decoder.read([opening + coarse_RT[row, :length].tolist() for row in group], group)
    # A row whose window is over reads on beside the others, from its start again; what it says then is cut off below.
    # The ids stay on the device: nothing waits for them from token to token.
    ids_RKT = torch.zeros(rows, form.codebooks, frames, dtype=torch.long, device=decoder.device)
    ids_RKT[:, 0] = torch.from_numpy(coarse_RT)
    unread = torch.full((rows, 1), vocabulary.special("<stage_2>"), device=decoder.device)
    for frame in steps:
        if form.repeats_codebook_0:
            unread = torch.cat([unread, ids_RKT[:, 0, frame : frame + 1]], dim=1)
        for codebook in range(1, form.codebooks):
            valid = grammar.allowed(codebook - form.codebooks + grammar.period)[0]
            unread = valid.start + decoder.score(decoder.read(unread), valid).argmax(dim=-1, keepdim=True)
            ids_RKT[:, codebook, frame] = unread[:, 0]
    refined_RKT = ids_RKT.cpu().numpy()
    return [
        np.concatenate([codec.codes(ids_KT[k : k + 1, : len(window)], k) for k in range(form.codebooks)])
        for ids_KT, window in zip(refined_RKT, windows, strict=True)
    ]

"""Stage 2: from the codebook-0 codes of each track to all codebooks, greedily, in windows of 6 s.

A window is read as training writes it: `<SOA><stage_1>` codebook-0 ids `<stage_2>`, then frame by frame the forced
codebook-0 id and the most probable id of each further codebook. Windows of both tracks, tails included, are the rows of
one batch whose caches live from frame to frame; only the ids of the codebook that is due are scored.
"""

from collections.abc import Sequence

import numpy as np
import torch

from megatron_music.errors import InputError
from megatron_music.generation.decoder import LlamaDecoder
from megatron_music.generation.models import ModelFolder
from megatron_music.progress import track
from megatron_music.vocabulary.grammar import ResidualGrammar
from megatron_music.vocabulary.vocabulary import CodecRange

WINDOW_FRAMES = 300
WINDOWS_AT_ONCE = 16


def refine(
    folder: ModelFolder,
    network: "torch.nn.Module",
    tracks: Sequence[np.ndarray],
    codec: CodecRange,
    codebooks: int,
    window_frames: int = WINDOW_FRAMES,
    windows_at_once: int = WINDOWS_AT_ONCE,
) -> list[np.ndarray]:
    """Adds codebooks 1 to ``codebooks - 1`` to codebook-0 codes.

    Args:
        tracks: codes of codebook 0, one array (frames,) a track, of any length.
        codebooks: codebooks of the stage-2 documents that the model was trained on.
        window_frames: frames of a window; fewer are taken where the model has too few positions.
        windows_at_once: rows of a batch, which bound the memory of the caches.

    Returns:
        int16 codes (codebooks, frames) of each track; row 0 is what was given.

    Raises:
        InputError: the model has too few positions for one frame.
    """
    # A window takes 3 special ids, its frames once, and its frames again with all codebooks, the last id unread.
    window_frames = min(window_frames, (folder.positions - 2) // (codebooks + 1))
    if window_frames < 1:
        raise InputError(folder.path, f"{folder.positions} positions hold no stage-2 frame", "choose another model")
    places = [(index, start) for index, codes in enumerate(tracks) for start in range(0, len(codes), window_frames)]
    # Windows of one length stand side by side, so that their prompts are read together.
    places.sort(key=lambda place: -len(tracks[place[0]][place[1] : place[1] + window_frames]))
    refined = [np.zeros((codebooks, len(codes)), dtype=np.int16) for codes in tracks]
    batches = [places[first : first + windows_at_once] for first in range(0, len(places), windows_at_once)]
    for number, batch in enumerate(batches, start=1):
        windows = [tracks[index][start : start + window_frames] for index, start in batch]
        grammar = ResidualGrammar(folder.vocabulary, codec, codebooks)
        steps = track(range(len(windows[0])), f"stage 2: batch {number} of {len(batches)}, frames", len(windows[0]))
        for (index, start), codes_KT in zip(batch, _refine_batch(network, grammar, windows, steps), strict=True):
            refined[index][:, start : start + codes_KT.shape[1]] = codes_KT
    return refined


def _refine_batch(
    network: "torch.nn.Module", grammar: ResidualGrammar, windows: list[np.ndarray], steps: Sequence[int]
) -> list[np.ndarray]:
    """Codes (codebooks, frames) of windows that are sorted by length, the longest first."""
    vocabulary, codec, codebooks = grammar.vocabulary, grammar.codec, grammar.period
    rows, frames = len(windows), len(windows[0])
    forced_RT = np.stack([np.resize(codec.ids(window[None])[0], frames) for window in windows])
    decoder = LlamaDecoder(network, rows, 2 + frames * (codebooks + 1))
    opening = [vocabulary.special("<SOA>"), vocabulary.special("<stage_1>")]
    for length in sorted({len(window) for window in windows}):
        group = [row for row, window in enumerate(windows) if len(window) == length]
        prompts = [opening + forced_RT[row, :length].tolist() + [vocabulary.special("<stage_2>")] for row in group]
        decoder.read(prompts, group[0])
    ids_RKT = np.zeros((rows, codebooks, frames), dtype=np.int32)
    ids_RKT[:, 0] = forced_RT
    for frame in steps:
        # A row whose window is over reads on beside the others; what it says then is cut off below.
        due = ids_RKT[:, 0, frame : frame + 1]
        if frame:
            due = np.concatenate([ids_RKT[:, -1, frame - 1 : frame], due], axis=1)
        for codebook in range(1, codebooks):
            (valid,) = grammar.allowed(codebook)
            scores = decoder.score(decoder.read(torch.from_numpy(due)), valid)
            due = valid.start + scores.argmax(-1).cpu().numpy().astype(np.int32)[:, None]
            ids_RKT[:, codebook, frame] = due[:, 0]
    return [
        np.concatenate([codec.codes(ids_KT[k : k + 1, : len(window)], k) for k in range(codebooks)])
        for ids_KT, window in zip(ids_RKT, windows, strict=True)
    ]

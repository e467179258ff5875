"""Hidden states of clips: what the frozen network makes of their codes.

A clip is read as the model's documents of a mix have it (documents/unconditional.py), without tags, which would tell
the label: ``Generate music based on the given tags\\n[Genre] `` and ``<SOA><codec>`` codebook-0 codes. Of each layer's
hidden states over the codes the mean is kept. Clips are at most 30 s, of longer ones the middle; what the context can't
hold at once is read in pieces, each behind the same opening.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_music.audio.codec import Codec, load_codec
from megatron_music.audio.files import read_audio
from megatron_music.corpus import fingerprint
from megatron_music.documents.tracks import TrackOptions
from megatron_music.documents.unconditional import INSTRUCTIONS
from megatron_music.errors import InputError
from megatron_music.evaluation.kept import kept_array
from megatron_music.evaluation.probing.clips import Clip
from megatron_music.files import as_on_disk
from megatron_music.generation.models import ModelFolder
from megatron_music.progress import track
from megatron_music.songs.codes import load_codes
from megatron_music.songs.song import SHARD_SUFFIX, Rejected, Song, split_reference
from megatron_music.vocabulary.grammar import AudioGrammar

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SECONDS = 30.0
_FORM = 1
"""Counts up when what is read or kept of a clip changes, so that no older feature is taken for a new one."""


@dataclass(frozen=True)
class Features:
    """Hidden states of the clips that could be read.

    Attributes:
        clips: their numbers, int (N,).
        layers_NLH: float32 (N, layers + 1, hidden): the embedding, then each layer's output; the last one normalised,
            as the output layer sees it.
        problems: a sentence for each clip that could not be read.
    """

    clips: np.ndarray
    layers_NLH: np.ndarray
    problems: list[str]


class FeatureReader:
    """Reads clips with one model.

    Args:
        weights: of the codec, for clips of audio; None takes the folder ``codec`` that the model carries.
        cache: folder in which features are kept by model, codec and clip.

    Raises:
        InputError: the model can't read clips of this form.
    """

    def __init__(
        self, folder: ModelFolder, weights: str | Path | None, cache: Path, device: str = "cpu", dtype: str = "float32"
    ):
        self.folder, self.cache, self._device, self._dtype = folder, cache, device, dtype
        self.weights = folder.codec_weights(weights)
        grammar = AudioGrammar(folder.vocabulary, tracks=1)
        self._codec_range = grammar.codec
        self._header = [*folder.tokenizer().encode(f"{INSTRUCTIONS['mix']}\n[Genre] "), *grammar.opening]
        self._room = folder.positions - len(self._header)
        if self._room < 1:
            what = f"reads {folder.positions} tokens, of which the opening of a clip takes {len(self._header)}"
            raise InputError(folder.path, what, "probe a model with a longer context")
        self._network: LlamaForCausalLM | None = None
        self._codec: Codec | None = None
        self._known = fingerprint.of_value([_FORM, SECONDS, folder.fingerprint(), dtype, *self._codec_stamp()])

    def read(self, clips: list[Clip], base: Path) -> Features:
        """Features of clips whose paths are relative to ``base``.

        Raises InputError where no codec can be loaded for clips of audio, or no clip can be read.
        """
        if any(not _holds_codes(clip.path) for clip in clips):
            self._loaded_codec()
        found: list[np.ndarray] = []
        numbers, problems = [], []
        for number, clip in enumerate(track(clips, "hidden states of clips")):
            try:
                found.append(self._features(clip, base))
                numbers.append(number)
            except (InputError, Rejected) as error:
                problems.append(str(error))
        if not found:
            raise InputError(base, f"none of {len(clips)} clips can be read ({problems[0]})", "check their paths")
        return Features(np.array(numbers), np.stack(found), problems)

    def _features(self, clip: Clip, base: Path) -> np.ndarray:
        path = as_on_disk(base, split_reference(clip.path)[0])
        stamp = fingerprint.of_stat(path)
        kept = self.cache / f"{fingerprint.of_value([self._known, str((base / clip.path).resolve()), stamp])}.npy"
        return kept_array(kept, lambda: self._hidden_means(self._codes(clip, base)))

    def _codes(self, clip: Clip, base: Path) -> np.ndarray:
        """Codebook-0 codes, int16 (T,), of at most SECONDS from the middle."""
        if _holds_codes(clip.path):
            song = Song(clip.path, codes={"mix": clip.path}, folder=base)
            codes_T = load_codes(song, "mix", self._codec_range)[0]
            return _middle(codes_T, round(SECONDS * self._frames_per_second()))
        codec = self._loaded_codec()
        samples = read_audio(as_on_disk(base, clip.path), codec.sample_rate)
        codes_T = codec.encode(_middle(samples, round(SECONDS * codec.sample_rate)))[0]
        if not len(codes_T):
            raise InputError(base / clip.path, "is too short for one code", "leave the clip out")
        return codes_T

    def _hidden_means(self, codes_T: np.ndarray) -> np.ndarray:
        """Means of each layer's hidden states over the codes, float32 (layers + 1, hidden)."""
        import torch

        if self._network is None:
            self._network = self.folder.network(self._device, self._dtype)
        ids_T = self._codec_range.ids(codes_T[None])[0]
        total = 0.0
        for first in range(0, len(ids_T), self._room):
            row = torch.tensor([[*self._header, *ids_T[first : first + self._room].tolist()]], device=self._device)
            with torch.inference_mode():
                hidden = self._network.model(row, use_cache=False, output_hidden_states=True).hidden_states
            total = total + torch.stack([layer[0, len(self._header) :].double().sum(dim=0) for layer in hidden])
        return (total / len(ids_T)).float().cpu().numpy()

    def _loaded_codec(self) -> Codec:
        if self._codec is None:
            self._codec = load_codec(self._codec_range.name, self.weights, self._device, codebooks=1)
            if self._codec.codebook_size != self._codec_range.codebook_size:
                what = f"has codebooks of {self._codec.codebook_size} codes, not {self._codec_range.codebook_size}"
                raise InputError(self.weights, what, "name the codec of the training songs with --codec-weights")
        return self._codec

    def _frames_per_second(self) -> float:
        """Of the model's training documents; of the codec that YuE uses where the folder does not tell."""
        told = [options.get("frames_per_second") for of in self.folder.tasks.values() for options in of]
        return next((float(rate) for rate in told if rate), TrackOptions().frames_per_second)

    def _codec_stamp(self) -> tuple[str, list]:
        return str(self.weights), fingerprint.of_stats(self.weights) if self.weights is not None else []


def _holds_codes(path: str) -> bool:
    return path.endswith(".npy") or f"{SHARD_SUFFIX}#" in path


def _middle(values: np.ndarray, longest: int) -> np.ndarray:
    first = max(0, (len(values) - longest) // 2)
    return values[first : first + longest]

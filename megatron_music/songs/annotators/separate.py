"""Source separation: vocals and accompaniment of a mix, by a Demucs model."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt

from megatron_music.audio.files import write_audio
from megatron_music.errors import InputError
from megatron_music.files import atomic_path, read_yaml
from megatron_music.pretrained import HUB_NAME, missing_weights
from megatron_music.songs.annotators.common import (
    NetworkOptions,
    file_name,
    file_stamp,
    hear,
    import_package,
    needed_weights,
)
from megatron_music.songs.song import Rejected, Song, rebase_reference
from megatron_music.weights import require_content

_STEMS = {"vocals": "vocals.flac", "accompaniment": "accompaniment.flac"}
_EXAMPLE = "htdemucs_ft"
_MODEL_SUFFIXES = (".th", ".safetensors")


class Separate:
    """Adds ``vocals`` and ``accompaniment`` audio, flac of 24 bits at the model's rate, as long as the mix.

    The accompaniment is the mix less the vocals, not the sum of the other stems: so the two tracks are together the
    mix, as a dual-track model takes for granted, and nothing that the model assigns to no stem is lost. What it costs:
    a voice that the model misses, or makes up, is heard in the accompaniment. A subtraction can pass full scale; both
    tracks are then lowered by the same factor, so that they keep their balance.

    Files lie in ``out/stems`` under a name made of the song, its audio file and the model, so that a song separated
    before a run was killed is not separated again. The model hears pieces of a few seconds, with a quarter of overlap;
    all stems of a song together stay in memory (85 MiB a minute for four stems).
    """

    name = "separate"

    class Options(NetworkOptions):
        """Options of ``separate``.

        Attributes:
            weights: a ``.th`` (a pickle: load only files that you trust) or ``.safetensors`` file of a model; a folder
                with one model, or with one ``.yaml`` that lists a bag of them; or a name of Demucs' own (``htdemucs``)
                or ``owner/name`` on the hub.
            shifts: how many randomly shifted versions are averaged (better by up to 0.2 dB, and so many times slower);
                the shifts are the same for the same song.
        """

        shifts: NonNegativeInt = 0

    def __init__(self, options: "Separate.Options", device: str):
        self.options, self.device = options, device
        weights = needed_weights(self.name, options.weights, "a model's file or folder", _EXAMPLE)
        self._apply = import_package(self.name, "demucs.apply", "demucs").apply_model
        self.model = _load(weights)
        if "vocals" not in self.model.sources:
            raise InputError(weights, f"separates {', '.join(self.model.sources)}", "name a model that finds vocals")
        self._making = (weights, _stamps(Path(weights)), options.shifts)

    def annotate(self, song: Song, out: Path) -> Song:
        """Raises Rejected where the mix can't be read or the model fails on it."""
        if {"vocals", "accompaniment"} <= song.audio.keys() and not self.options.overwrite:
            return song
        mix_path = song.audio_path("mix")
        name = file_name(song.id, song.audio["mix"], file_stamp(mix_path), *self._making)
        folder = Path(out) / "stems" / name
        if not all((folder / file).is_file() for file in _STEMS.values()):
            tracks = self.separate(hear(song, "mix", self.model.samplerate, mono=False), song.id)
            with atomic_path(folder) as temporary:
                temporary.mkdir()
                for track, file in _STEMS.items():
                    write_audio(temporary / file, tracks[track], self.model.samplerate, "PCM_24")
        stems = {
            track: rebase_reference(f"stems/{name}/{file}", Path(out), song.folder) for track, file in _STEMS.items()
        }
        return replace(song, audio={**song.audio, **stems})

    def separate(self, mix_CS: np.ndarray, song_id: str = "") -> dict[str, np.ndarray]:
        """float32 (channels, S) at the model's rate -> float32 (channels of the model, S) of each track.

        More channels than the model's are averaged first. Raises Rejected where the model fails.
        """
        channels = self.model.audio_channels
        if len(mix_CS) != channels:
            mix_CS = np.repeat(mix_CS.mean(axis=0, keepdims=True), channels, axis=0)
        mix = torch.from_numpy(np.ascontiguousarray(mix_CS))
        # The scale that Demucs models are trained on: the channels' average has mean 0 and deviation 1.
        mean, deviation = mix.mean(), mix.mean(dim=0).std(correction=0) + 1e-8
        try:
            with _seeded(song_id), torch.inference_mode():
                stems = self._apply(
                    self.model, ((mix - mean) / deviation)[None], shifts=self.options.shifts, device=self.device
                )[0]
        except RuntimeError as error:  # one song that a network can't take must not stop a run of a week
            raise Rejected("separation_failed", str(error)) from None
        vocals_CS = (stems[self.model.sources.index("vocals")] * deviation + mean).cpu().numpy()
        accompaniment_CS = mix_CS - vocals_CS
        peak = max(np.abs(vocals_CS).max(), np.abs(accompaniment_CS).max(), 1.0)
        return {"vocals": vocals_CS / peak, "accompaniment": accompaniment_CS / peak}


@contextmanager
def _seeded(song_id: str) -> Iterator[None]:
    """Demucs draws shifts from Python's global generator: makes them the song's own, and leaves no trace."""
    state = random.getstate()
    random.seed(song_id)
    try:
        yield
    finally:
        random.setstate(state)


def _stamps(weights: Path) -> list[tuple[int, int]]:
    files = sorted(weights.iterdir()) if weights.is_dir() else [weights]
    return [file_stamp(file) for file in files]


def _load(weights: str) -> Any:
    """A Demucs model or bag of models, in evaluation mode."""
    path = Path(weights)
    if path.exists():
        model = _load_folder(path) if path.is_dir() else _load_file(path)
    else:
        model = _load_named(weights)
    return model.eval().requires_grad_(False)


def _load_file(path: Path) -> Any:
    from demucs.hf import load_safetensors_model
    from demucs.states import load_model

    if path.suffix not in _MODEL_SUFFIXES:
        raise InputError(path, "is no model of Demucs", f"name a {' or '.join(_MODEL_SUFFIXES)} file, or a folder")
    require_content(path, "fetch the file again")
    try:
        return load_safetensors_model(path) if path.suffix == ".safetensors" else load_model(path)
    except (Exception, SystemExit) as error:
        # Pickles, safetensors and classes named in either fail in many ways; all mean that the file can't be used.
        raise InputError(path, f"can't be loaded as a model of Demucs ({error})", "fetch the file again") from None


def _load_folder(folder: Path) -> Any:
    from demucs.apply import BagOfModels

    bags = sorted(folder.glob("*.yaml"))
    models = sorted(path for path in folder.iterdir() if path.suffix in _MODEL_SUFFIXES)
    if len(bags) > 1 or (not bags and len(models) != 1):
        found = f"holds {len(bags)} .yaml files and {len(models)} models"
        raise InputError(folder, found, "name a folder with one of either, or a model's file")
    if not bags:
        return _load_file(models[0])
    bag = read_yaml(bags[0])
    # A model's file is named by its signature, often with the digits of a checksum behind: SIGNATURE-CHECKSUM.th.
    by_signature = {path.stem.split("-")[0]: path for path in models}
    names = bag.get("models")
    if not isinstance(names, list) or not names:
        raise InputError(f"{bags[0]}: models", "is not a list of models", "fetch the file again")
    for name in names:
        if str(name) not in by_signature:
            raise InputError(f"{bags[0]}: models", f"there is no file {name}.th or .safetensors", "fetch it too")
    try:
        return BagOfModels(
            [_load_file(by_signature[str(name)]) for name in names], bag.get("weights"), bag.get("segment")
        )
    except (AssertionError, TypeError):
        raise InputError(bags[0], "does not fit the models that it lists", "fetch the files again") from None


def _load_named(name: str) -> Any:
    """A model by Demucs' own name or ``owner/name`` on the hub; a name that can't be one is told without network."""
    from demucs.pretrained import REMOTE_ROOT, get_model

    own = sorted(path.stem for path in REMOTE_ROOT.glob("*.yaml"))
    if name not in own and (not HUB_NAME.fullmatch(name) or Path(name).suffix in _MODEL_SUFFIXES):
        raise missing_weights(name, f"one of {', '.join(own)}")
    try:
        return get_model(name if name in own else f"hf://{name}")
    except (Exception, SystemExit) as error:
        raise InputError(name, f"can't be loaded as a model of Demucs ({error})", "check the name") from None

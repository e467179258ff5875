"""Songs from two exported models: requests in, stems, mix and all that repeats the song out."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_music import __version__
from megatron_music.audio.codec import load_codec
from megatron_music.audio.files import write_audio
from megatron_music.audio.loudness import integrated_loudness, levelling_gain
from megatron_music.errors import InputError
from megatron_music.files import atomic_path
from megatron_music.generation.backend import open_backend
from megatron_music.generation.models import ModelFolder, check_pair
from megatron_music.generation.plan import Plan, Stage1Song, plan_song
from megatron_music.generation.reference import read_past, read_reference, silent_code
from megatron_music.generation.request import Reference, SongRequest, SungSegment, Watch
from megatron_music.generation.sampling import SamplingSettings

if TYPE_CHECKING:
    from megatron_music.audio.codec import Codec
    from megatron_music.audio.vocoder import Vocoder

TRACKS = {"dual": ("vocals", "accompaniment"), "mix": ("mix",)}
FORMATS = ("wav", "flac", "mp3")
SUBTYPE = "PCM_24"


@dataclass(frozen=True)
class Recording:
    """A finished song.

    Attributes:
        sounds: float32 (samples,) by name: ``mix``, and ``vocals`` and ``accompaniment`` where it has both, which sum
            to the mix.
        record: all that repeats the song, as ``song.json`` holds it.
    """

    sounds: dict[str, np.ndarray]
    sample_rate: int
    record: dict[str, Any]

    def write(self, out: str | Path, file_format: str = "wav") -> None:
        """Writes the sounds and ``song.json`` to a folder, which appears whole; wav and flac have 24 bits."""
        if file_format not in FORMATS:
            raise InputError("--format", f"{file_format!r} can't be written", f"choose {', '.join(FORMATS)}")
        with atomic_path(out) as folder:
            folder.mkdir()
            for name, samples in self.sounds.items():
                write_audio(folder / f"{name}.{file_format}", samples, self.sample_rate, SUBTYPE)
            (folder / "song.json").write_text(readable_json(self.record), encoding="utf-8")


@dataclass(frozen=True)
class Models:
    """Two models, what goes with them, and where they run.

    Attributes:
        stage1, stage2: folders that `export` wrote, or released ones.
        codec: a codec of the models' vocabulary; None takes its default one.
        weights: the codec's weights; None takes the folder ``codec`` that the models carry.
        vocoder: folder with YuE's 44.1 kHz vocoders; None decodes with the codec alone.
        vocabulary, tokenizer: for model folders that carry none, see ``ModelFolder.open``.
        device: None takes a GPU where there is one.
        dtype: "float32", "bfloat16" or "auto" (as stored); None takes float32 on a CPU and "auto" on a GPU.
        backend: what runs the networks, "transformers" or "vllm"; None takes transformers.
    """

    stage1: str | Path | None = None
    stage2: str | Path | None = None
    codec: str | None = None
    weights: str | Path | None = None
    vocoder: str | Path | None = None
    vocabulary: str | Path | None = None
    tokenizer: str | Path | None = None
    device: str | None = None
    dtype: str | None = None
    backend: str | None = None

    def folders(self) -> tuple[ModelFolder, ModelFolder]:
        """Both model folders, opened and checked against each other; raises InputError."""
        for name, folder in (("stage1", self.stage1), ("stage2", self.stage2)):
            if folder is None:
                raise InputError(f"--{name}", "is missing", "name a model folder")
        first, second = (ModelFolder.open(path, self.vocabulary, self.tokenizer) for path in (self.stage1, self.stage2))
        check_pair(first, second)
        return first, second


class Studio:
    """Models with their codec and perhaps vocoders, for as many songs as are asked for.

    Folders and codec are opened and checked at once; a network's weights are read when a song needs them. The network
    of one stage leaves the memory before the other comes in, unless ``keep_networks`` is set.

    Raises:
        InputError: a folder lacks something, or the parts do not belong together.
    """

    def __init__(self, models: Models, keep_networks: bool = False):
        import torch

        from megatron_music.generation.stage2 import WindowForm

        self.folders = models.folders()
        self.device = models.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = models.dtype or ("float32" if self.device == "cpu" else "auto")
        self.backend = models.backend or "transformers"
        self._backend = open_backend(self.backend, self.folders, self.device, self.dtype, keep_networks)
        self.tokenizer = self.folders[0].tokenizer()
        self.codec_range = self.folders[0].vocabulary.codec(models.codec)
        self.form = WindowForm.of(self.folders[1], self.codec_range)
        self.weights, self.vocoder_folder = models.weights, models.vocoder
        self.codec = open_codec(self.folders, self.codec_range.name, models.weights, self.device)
        self.vocoders: dict[str, Vocoder] = {}
        if models.vocoder is not None:
            from megatron_music.audio.vocoder import check_vocoders, load_vocoders

            self.vocoders = load_vocoders(models.vocoder, self.device)
            check_vocoders(self.vocoders, self.codec, models.vocoder)

    def reference(self, paths: Sequence[str | Path], start_s: float = 0.0, end_s: float = 30.0) -> Reference:
        """A reference from one file, or from vocals and accompaniment; see ``read_reference``."""
        return read_reference(paths, self.codec, self.codec_range, start_s, end_s)

    def past(self, name: str | Path, after: int | None = None) -> tuple[str, list[SungSegment]]:
        """Tags and sections of a song to go on with; see ``read_past``."""
        return read_past(name, self.codec_range, after)

    def plan(self, requests: Sequence[SongRequest]) -> list[Plan]:
        """The token sequences of requests; raises InputError where these models can't sing one of them."""
        from megatron_music.generation.stage1 import check_room

        silence = silent_code(self.codec) if any(request.instrumental for request in requests) else None
        plans = [
            plan_song(self.folders[0], self.tokenizer, request, self.codec_range.name, silence) for request in requests
        ]
        for plan in plans:
            check_room(plan, self.folders[0].positions)
        return plans

    def make(
        self,
        requests: Sequence[SongRequest],
        settings: SamplingSettings | None = None,
        *,
        loudness_lufs: float | None = None,
        windows_at_once: int | None = None,
        watch: Watch | None = None,
    ) -> list[Recording]:
        """Sings songs side by side and decodes them.

        Args:
            loudness_lufs: of the mix, as far as nothing clips; None leaves it as decoded where that does not clip.
            windows_at_once: windows of stage 2 side by side, see ``stage2.refine``.
            watch: callbacks, and how to stop.

        Raises:
            InputError: these models can't sing a request; before any network is read.
            Stopped: ``watch.stop`` was set.
        """
        if windows_at_once is not None and windows_at_once < 1:
            raise InputError("windows_at_once", f"{windows_at_once} windows make no song", "ask for at least 1")
        settings = settings or SamplingSettings()
        plans = self.plan(requests)
        songs = self._backend.sing(plans, settings, watch)
        coarse = [[song.codes_T(track) for track in range(song.plan.grammar.period)] for song in songs]
        # The silence of an instrumental song needs no further codebooks.
        firsts = [1 if request.instrumental else 0 for request in requests]
        wanted = [codes_T for tracks, first in zip(coarse, firsts, strict=True) for codes_T in tracks[first:]]
        refined = iter(self._backend.refine(wanted, self.form, windows_at_once, watch))
        recordings = []
        for request, song, tracks, first in zip(requests, songs, coarse, firsts, strict=True):
            codes = [codes_T[None] for codes_T in tracks[:first]] + [next(refined) for _ in tracks[first:]]
            named = dict(zip(TRACKS[request.tracks], codes, strict=True))
            record = self._record(request, song, settings, named)
            recordings.append(self._decoded(request, named, record, loudness_lufs))
        return recordings

    def _decoded(
        self, request: SongRequest, codes: dict[str, np.ndarray], record: dict[str, Any], loudness_lufs: float | None
    ) -> Recording:
        sounded = {
            name: codes_KT for name, codes_KT in codes.items() if not (request.instrumental and name == "vocals")
        }
        sounds = {name: self._sound(name, codes_KT) for name, codes_KT in sounded.items()}
        mix, stems = mixed(list(sounds.values())), list(sounds.values())
        gain = levelling_gain(mix, stems, self.sample_rate, loudness_lufs)
        # One track is the mix itself.
        named = (
            {"mix": mix} if len(sounds) == 1 else {**{name: x[: len(mix)] for name, x in sounds.items()}, "mix": mix}
        )
        levelled = {name: (samples * gain).astype(np.float32) for name, samples in named.items()}
        reached = integrated_loudness(levelled["mix"], self.sample_rate)
        record |= {
            "sample_rate": self.sample_rate,
            "duration_s": len(mix) / self.sample_rate,
            "gain": gain,
            "loudness_lufs": round(reached, 2) if np.isfinite(reached) else None,
            "target_lufs": loudness_lufs,
        }
        return Recording(levelled, self.sample_rate, record)

    @property
    def sample_rate(self) -> int:
        """Of the finished songs, in Hz."""
        if not self.vocoders:
            return self.codec.sample_rate
        return round(self.vocoders["vocals"].hop_samples * self.codec.frames_per_second)

    def _sound(self, name: str, codes_KT: np.ndarray) -> np.ndarray:
        decoded = self.codec.decode(codes_KT[: self.codec.codebooks])
        if not self.vocoders:
            return decoded
        from megatron_music.audio.vocoder import cross_over, vocode

        # A mix has the accompaniment's vocoder, which knows all instruments.
        high = vocode(self.vocoders["vocals" if name == "vocals" else "accompaniment"], self.codec, codes_KT)
        return cross_over(decoded, self.codec.sample_rate, high, self.sample_rate)

    def _record(
        self, request: SongRequest, song: Stage1Song, settings: SamplingSettings, codes: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        return {
            "megatron_music": __version__,
            "models": {
                name: {"folder": str(folder.path.resolve()), "fingerprint": folder.fingerprint()}
                for name, folder in zip(("stage1", "stage2"), self.folders, strict=True)
            },
            "vocabulary": self.folders[0].vocabulary.name,
            "codec": self.codec_range.name,
            "codec_weights": None if self.weights is None else str(self.weights),
            "vocoder": None if self.vocoder_folder is None else str(self.vocoder_folder),
            "device": self.device,
            "dtype": self.dtype,
            "backend": self.backend,
            "settings": asdict(settings),
            "request": request.record(),
            **_token_record(request, song),
            "codes": {name: codes_KT.tolist() for name, codes_KT in codes.items()},
        }


def open_codec(folders: Sequence[ModelFolder], name: str, weights: str | Path | None, device: str) -> "Codec":
    """Loads the codec that turns the models' codes into sound; raises InputError where it lacks weights or fits not."""
    weights = next(filter(None, (folder.codec_weights(weights) for folder in folders)), None)
    decoder = load_codec(name, weights, device)
    size = folders[0].vocabulary.codec(name).codebook_size
    if decoder.codebook_size != size:
        raise InputError(
            weights or name,
            f"has codebooks of {decoder.codebook_size} codes, the models' vocabulary of {size}",
            "name the codec that the training songs were encoded with (--weights)",
        )
    return decoder


def mixed(stems: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of stems, float32, as long as the shortest of them."""
    length = min(len(samples) for samples in stems)
    return np.sum([samples[:length] for samples in stems], axis=0, dtype=np.float32)


def readable_json(content: dict[str, Any]) -> str:
    """Indented JSON whose lists of numbers stand on one line each."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s*(-?\d+(?:,\s*-?\d+)*)\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def _token_record(request: SongRequest, song: Stage1Song) -> dict[str, Any]:
    frame, segments = 0, []
    for text, segment in zip(request.lyrics or [""], song.segments, strict=False):
        end = frame + len(segment.audio) // song.plan.grammar.period
        segments.append({"text": text, "start_frame": frame, "end_frame": end, **asdict(segment)})
        frame = end
    return {"frames": frame, "header": song.plan.header, "segments": segments}

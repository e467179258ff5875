"""What needs a network: f0 by RMVPE, lyric errors, CLAP scores, and how far a system's songs lie from a reference set.

Networks hear song after song in this process, and what each heard is kept in a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.audio.files import read_audio
from megatron_music.corpus import fingerprint
from megatron_music.errors import InputError
from megatron_music.evaluation.kept import kept_array, kept_json
from megatron_music.evaluation.result import Missing
from megatron_music.evaluation.songs import embedding, lyrics_error, voice
from megatron_music.evaluation.songs.embedding import AudioNetwork, frechet_distance, kl_divergence
from megatron_music.evaluation.songs.inputs import F0, SongFiles, read_prompt
from megatron_music.evaluation.songs.lyrics_error import Recogniser, hear_words, load_recogniser
from megatron_music.evaluation.songs.song import Found
from megatron_music.generation.models import check_device
from megatron_music.progress import console, track

EXAMPLES = {
    "word_error": ("no speech recogniser was named", "--recogniser FOLDER of a Whisper for CTranslate2, or a hub name "
                   "such as Systran/faster-whisper-large-v3 or nvidia/parakeet-tdt-0.6b-v3"),
    "clap_score": ("no CLAP model was named", "--embedding FOLDER, or laion/larger_clap_music from the hub"),
    "frechet_distance": ("it needs an embedding model and reference songs", "--embedding FOLDER --reference DIR"),
    "kl_divergence": ("it needs an audio classifier and reference songs", "--classifier FOLDER, or "
                      "MIT/ast-finetuned-audioset-10-10-0.4593 from the hub, and --reference DIR"),
}  # fmt: skip
"""Why a measure is missing where its option was not given, and the way to have it."""


@dataclass(frozen=True)
class Named:
    """What the user named.

    Attributes:
        recogniser: see ``load_recogniser``.
        language: of all lyrics; None takes each song's own, or leaves it to the recogniser.
        embedding: a model of transformers, see ``AudioNetwork``.
        classifier: an audio classifier of transformers.
        reference: folder of songs that others are compared with.
        device: a torch device.
        rmvpe: RMVPE's weights, which then hears the vocals in place of pyin.
    """

    recogniser: str | None = None
    language: str | None = None
    embedding: str | None = None
    classifier: str | None = None
    reference: Path | None = None
    device: str = "cpu"
    rmvpe: Path | None = None


class Networks:
    """The networks that were named, loaded; raises InputError where one can't be."""

    def __init__(self, named: Named, reference: list[SongFiles], store: Path):
        self._named, self._reference, self._store = named, reference, store
        self._told: set[str] = set()
        if named.recogniser or named.rmvpe or named.embedding or named.classifier:
            check_device(named.device)
        self.recogniser: Recogniser | None = None
        if named.recogniser is not None:
            self.recogniser = load_recogniser(named.recogniser, named.device)
        self._rmvpe = self._rmvpe_program = None
        if named.rmvpe is not None:
            from megatron_music.evaluation.songs import rmvpe

            self._rmvpe, self._rmvpe_program = rmvpe.load_rmvpe(named.rmvpe, named.device), rmvpe.__file__
        self.embedding = AudioNetwork(named.embedding, named.device) if named.embedding else None
        self.classifier = AudioNetwork(named.classifier, named.device, classify=True) if named.classifier else None

    def missing(self) -> Iterator[Missing]:
        """Measures whose networks, or reference songs, were not named."""
        there = {
            "word_error": self.recogniser,
            "clap_score": self.embedding and self.embedding.joint,
            "frechet_distance": self.embedding and self._reference,
            "kl_divergence": self.classifier and self._reference,
        }
        for name, (why, how) in EXAMPLES.items():
            if not there[name]:
                yield Missing(measure=name, why=why, how=how)

    def hear_song(self, song: SongFiles, found: Found) -> None:
        """Adds what RMVPE hears, lyric errors and the CLAP score of a song whose audio can be read."""
        if song.heard is None:
            return
        if self._rmvpe and "vocals" in song.tracks and F0 not in song.tracks:
            f0_hz = found.attempt("RMVPE", lambda: self._f0(song.tracks["vocals"]))
            if f0_hz is not None:
                found.add_voice("vocals", f0_hz)
                found.details["f0"] = f"RMVPE ({self._named.rmvpe.name})"
        prompt, _ = read_prompt(song, 0.0)  # the length is that of sections, which nothing here hears
        if self.recogniser and prompt.lyrics:
            found.attempt("recogniser", lambda: self._lyrics(song, prompt.lyrics, prompt.language, found))
        if self.embedding and self.embedding.joint and prompt.tags:
            rows = found.attempt("embedding", lambda: self._rows(self.embedding, song.heard))
            if rows is not None:
                found.measures["clap_score"] = float(np.mean(rows @ self.embedding.read(prompt.tags)))

    def distances(self, songs: list[SongFiles]) -> tuple[dict[str, float], list[Missing]]:
        """Frechet distance and KL divergence of a system's songs from the reference set, and why one is missing."""
        measures, missing = {}, []
        for name, network, compare in (
            ("frechet_distance", self.embedding, frechet_distance),
            ("kl_divergence", self.classifier, kl_divergence),
        ):
            if network is None or not self._reference:
                continue
            rows = [self._all_rows(network, files) for files in (self._reference, songs)]
            try:
                if not all(map(len, rows)):
                    raise ValueError("there is no song that can be read")
                distance = compare(*rows)
                if not np.isfinite(distance):
                    raise ValueError(f"it is {distance}: the model can't hear some song")
                measures[name] = distance
            except ValueError as error:
                missing.append(Missing(measure=name, why=str(error), how="name folders of more songs"))
        return measures, missing

    def _f0(self, path: Path) -> np.ndarray:
        kept = self._kept(path, "npy", self._rmvpe_program, self._named.rmvpe)
        return kept_array(kept, lambda: self._rmvpe.f0(read_audio(path, voice.SAMPLE_RATE)))

    def _lyrics(self, song: SongFiles, lyrics: str, language: str | None, found: Found) -> None:
        path = song.tracks.get("vocals", song.heard)
        language = self._named.language or language
        kept = self._kept(path, "json", lyrics_error.__file__, self._named.recogniser, language)
        transcript = kept_json(
            kept, lambda: hear_words(self.recogniser, read_audio(path, lyrics_error.SAMPLE_RATE), language)
        )
        errors = lyrics_error.lyrics_error(lyrics, transcript)
        if errors:
            found.measures |= {"word_error": errors.word_error, "character_error": errors.character_error}
            found.details |= {"lyrics": errors.windows, "transcript": errors.transcript}

    def _all_rows(self, network: AudioNetwork, songs: list[SongFiles]) -> np.ndarray:
        """Of all songs that can be read; problems of a system's songs were told when they were measured."""
        rows = []
        for song in track(songs, f"hearing with {Path(network.weights).name}"):
            try:
                if song.heard:
                    rows.append(self._rows(network, song.heard))
            except InputError as error:
                if songs is self._reference and str(error) not in self._told:
                    self._told.add(str(error))  # once, whatever the number of systems and networks
                    console.print(f"left out of the reference set: {error}")
        return np.concatenate(rows) if rows else np.zeros((0, 1))

    def _rows(self, network: AudioNetwork, path: Path) -> np.ndarray:
        kept = self._kept(path, "npy", embedding.__file__, network.weights, network.classes)
        return kept_array(kept, lambda: network.hear(path))

    def _kept(self, path: Path, suffix: str, program: str, weights: str | Path, setting: Any = None) -> Path:
        """The file that keeps what a network heard, by the audio, the program, the weights and the setting."""
        made_of = [str(path), fingerprint.of_stat(path), fingerprint.of_file(program)]
        made_of += [str(weights), fingerprint.of_stats(weights), setting]
        return self._store / f"{fingerprint.of_value(made_of)}.{suffix}"

"""All that `evaluate model` measures, as the file that the report reads: an ``evaluation.json`` of one model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import Interval
from megatron_music.evaluation.loss import check_vocabulary
from megatron_music.evaluation.memorisation import measure as copies
from megatron_music.evaluation.memorisation.index import CopyIndex, open_index
from megatron_music.evaluation.memorisation.samples import Track, tracks_of_songs
from megatron_music.evaluation.model import Effort, evaluate_model
from megatron_music.evaluation.probing import probes as probing
from megatron_music.evaluation.probing.probes import ProbeSet
from megatron_music.evaluation.report.tables import heading, measure_rows
from megatron_music.evaluation.result import Evaluation, Measure, Missing, SystemResult, register
from megatron_music.generation.models import ModelFolder, check_device, refuse_stage_2
from megatron_music.tables import table
from megatron_music.vocabulary.vocabulary import CodecRange

MEASURES = {
    "audio_loss": Measure(
        title="held-out loss of audio",
        unit="nats a token",
        better="lower",
        note="Of all audio tokens of held-out songs.",
    ),
    "gain_over_bigram": Measure(
        title="saved of a bigram's loss", better="higher", note="1 - loss / the bigram's, over held-out songs."
    ),
    "invalid_token_share": Measure(
        title="invalid tokens", better="lower", note="Of ids sampled freely inside audio spans; interval over spans."
    ),
    "following_rise": Measure(
        title="loss behind another song's text",
        unit="nats a token more",
        better="higher",
        note="How much the loss of audio rises behind another song's lyrics and tags: 0 is a model that ignores them.",
    ),
    "reference_copied_excess": Measure(
        title="copied of the reference, more than songs do",
        better="lower",
        note="Share of groups of 8 codes behind an ICL reference that stand in it, less that of the song itself.",
    ),
    "repeated_excess": Measure(
        title="repeated groups of codes, more than in songs",
        note="Share of groups of 4 codes of free samples that stood before, less that of held-out songs (0: alike).",
    ),
}
register(**MEASURES)
_INTERVALS = {
    "gain_over_bigram": ("gain_over_bigram",),
    "invalid_token_share": ("invalid",),
    "following_rise": ("following", "rise"),
    "reference_copied_excess": ("copying", "copied_excess"),
    "repeated_excess": ("variety", "repeated_excess"),
}
"""Where ``evaluate_model`` has the numbers of these measures."""


@dataclass(frozen=True)
class ModelRequest:
    """What is measured of a model.

    Attributes:
        train: source of songs that the model was trained on; ``trained_on`` further ones, for copies alone.
        held_out: source of songs that it was not trained on.
        reference: source of ICL documents; None leaves copies of the reference out.
        index: the index of the training sources; None stands for the first one's prefix with ``.copies``.
        songs: folders of songs that `generate` wrote, to look for copies.
        probes: file of labelled clips, see ``probing.clips``.
        codec_weights: of the codec; None takes those in the model's folder.
    """

    train: Path
    held_out: Path
    trained_on: Sequence[Path] = ()
    reference: Path | None = None
    index: Path | None = None
    songs: Sequence[Path] = ()
    probes: Path | None = None
    codec_weights: str | None = None
    device: str = "cpu"
    positions: int = 2000
    seed: int = 0


def model_evaluation(model: str | Path, request: ModelRequest) -> Evaluation:
    """Measures a model; everything that is named is read and checked before the network is.

    The system is named by the last two parts of the model's path. ``model`` of it holds all that ``evaluate_model``
    found, ``memorised_songs`` and ``probes``.

    Raises:
        InputError: a file can't be read, or does not fit the model.
    """
    check_device(request.device)
    folder = ModelFolder.open(model)
    refuse_stage_2(folder.path, folder.tasks)
    codec = folder.vocabulary.codec()
    for source in [request.train, *request.trained_on, request.held_out, *filter(None, [request.reference])]:
        check_vocabulary(folder, IndexedSource(source))
    probes = None if request.probes is None else ProbeSet(request.probes)
    songs = _songs(request.songs, codec) if request.songs else None
    index = open_index([request.train, *request.trained_on], codec, request.index)
    found = evaluate_model(
        model,
        request.train,
        request.held_out,
        request.positions,
        request.seed,
        request.reference,
        index=index,
        codec_weights=request.codec_weights,
        device=request.device,
    )
    missing = [Missing(**one) for one in found.pop("missing")]
    numbers: dict[str, float | Interval] = {"audio_loss": found["audio_loss"]} | _with_intervals(found)
    if "memorisation" in found:
        numbers |= copies.measures_of(found["memorisation"])
    if songs is not None:
        found["memorised_songs"], more = _memorised_songs(index, codec, songs, request)
        numbers |= more
    if probes is not None:
        network = Effort(device=request.device).network
        found["probes"] = probing.probe_model(model, probes, request.codec_weights, request.seed, **network)
        numbers |= probing.measures_of(found["probes"])
    name = "/".join(Path(model).resolve().parts[-2:])
    return Evaluation.of([SystemResult(name=name, measures=numbers, model=found)], missing)


def summary(evaluation: Evaluation) -> str:
    """The measures of the model with their intervals, and what is missing, for a terminal."""
    [system] = evaluation.systems
    rows = [["", system.name]]
    rows += [[heading(row.measure), row.cells[system.name].words] for row in measure_rows(evaluation)]
    return "\n".join([table(rows), *evaluation.missing_in_words()])


def _songs(folders: Sequence[Path], codec: CodecRange) -> tuple[list[Track], list[str]]:
    """Tracks of the songs of all folders, and what is wrong with others; InputError where no track can be used."""
    tracks: list[Track] = []
    problems: list[str] = []
    for folder in folders:
        more, wrong = tracks_of_songs(folder, codec)
        tracks, problems = tracks + more, problems + wrong
    if not tracks:
        what = f"no song can be used ({problems[0]})" if problems else "every song is shorter than a second"
        raise InputError(", ".join(map(str, folders)), what, "name other songs")
    return tracks, problems


def _memorised_songs(
    index: CopyIndex, codec: CodecRange, songs: tuple[list[Track], list[str]], request: ModelRequest
) -> tuple[dict[str, Any], dict[str, float]]:
    """What generated songs copy, under the names of ``memorisation`` with ``songs_`` before them."""
    tracks, problems = songs
    found = copies.memorisation(index, codec, tracks, request.held_out, request.seed)
    numbers = {f"songs_{name}": value for name, value in copies.measures_of(found).items()}
    return found | {"problems": problems}, numbers


def _with_intervals(found: dict[str, Any]) -> dict[str, float | Interval]:
    numbers: dict[str, float | Interval] = {}
    for name, keys in _INTERVALS.items():
        told: Any = found
        for key in keys:
            told = told.get(key, {})
        if "low" in told:
            numbers[name] = Interval(**told)
        elif "value" in told:
            numbers[name] = told["value"]
    return numbers

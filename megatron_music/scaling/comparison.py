"""A bake-off in words: what each codec loses, and what language models made of its codes, as in the deck's table."""

from typing import Any

from megatron_music.tables import table

MEASURES = {
    "mel_distance_db": ("mel, dB", "mean difference of log-mel spectra, lower is better"),
    "stft_distance": ("STFT", "multi-resolution STFT distance, lower is better"),
    "si_sdr_db": ("SI-SDR, dB", "of the waveform itself, higher is better, far below 0 where phases are made up"),
    "pitch_accuracy": ("pitch, %", "voiced frames of the vocals within 50 cents, higher is better"),
    "pitch_cents": ("cents", "median error of the vocals' pitch, lower is better"),
}
DECK = (
    ("encodec32k", "acoustic", "above 4", "90%+"),
    ("hificodec", "acoustic", "above 4", "90%+"),
    ("semanticodec", "semantic", "below 3", "over 50%"),
    ("X-Codec", "semantic", "below 3", "under 10%"),
)
"""Codec, class, typical nats a token of the class (at 8k context and 1,024 codes), invalid tokens: by YuE's authors."""
CAVEATS = (
    "Reconstruction is compared at one sample rate, that of the lowest codec: what others do above it does not count.",
    "Bits by entropy are of single codes of all tracks: what a language model adds by context shows in its loss.",
    "Losses compare by the second of audio, between runs of one budget. A codec that keeps less has less to predict.",
    "No number here follows listeners.",
)


def comparison_text(comparison: dict[str, Any]) -> str:
    """All of a bake-off for a terminal."""
    codecs = comparison["codecs"]
    parts = [table(codec_rows(codecs), left=2)]
    for track in comparison["tracks"]:
        parts.append(table(reconstruction_rows(codecs, track)))
    parts.append(table(verdict_rows(codecs), left=2))
    told = [f"{one['measure']}: not measured, {one['why']}; {one['how']}" for one in comparison["missing"]]
    return "\n\n".join([*parts, "\n".join([*told, *CAVEATS])])


def codec_rows(codecs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """What each codec is, and the bits that it takes."""
    rows = [["codec", "codes", "Hz", "frames/s", "codebooks", "in use", "kbit/s", "by entropy"]]
    for name, codec in codecs.items():
        rows.append([
            name, codec["codec"], f"{codec['sample_rate']:,}", f"{codec['frames_per_second']:.4g}",
            f"{codec['codebooks']} x {codec['codebook_size']:,}",
            f"{sum(codec['codes_used']) / codec['codebooks'] / codec['codebook_size']:.0%}",
            f"{codec['bits_per_second'] / 1000:.3g}", f"{codec['entropy_bits_per_second'] / 1000:.3g}",
        ])  # fmt: skip
    return rows


def reconstruction_rows(codecs: dict[str, dict[str, Any]], track: str) -> list[list[str]]:
    """What each codec loses of a track, in the mean over songs."""
    tracks = [codec["tracks"][track] for codec in codecs.values()]
    names = [name for name in MEASURES if any(name in one["measures"] for one in tracks)]
    bands = list(dict.fromkeys(band for one in tracks for band in one["bands"]))
    words = any("word_error_after" in one for one in tracks)
    head = [track, *(MEASURES[name][0] for name in names), *(f"LSD {band}" for band in bands)]
    rows = [[*head, *(["words wrong, before", "added"] if words else [])]]
    for codec, one in zip(codecs, tracks, strict=True):
        cells = [_cell(name, one["measures"].get(name)) for name in names]
        cells += [_cell("", one["bands"].get(band)) for band in bands]
        if words and "word_error_after" in one:
            added = one["word_error_after"] - one["word_error_before"]
            cells += [f"{one['word_error_before']:.1%}", f"{added:+.1%}"]
        elif words:
            cells += ["", ""]
        rows.append([codec, *cells])
    return rows


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "pitch_accuracy":
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if name == "stft_distance" else f"{value:.2f}"


def verdict_rows(codecs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The deck's table, with the codecs that were measured above its own."""
    rows = [["codec", "class", "nats/token", "go below", "nats/s", "bits/s", "guessing", "invalid", "verdict"]]
    for name, codec in codecs.items():
        model, limit = codec.get("language_model", {}), codec["limits"]["loss"].get("go_below")
        cells = [_number(model.get(field), form) for field, form in (
            ("nats_per_token", ".3f"), ("nats_per_second", ".1f"), ("bits_per_second", ".1f"),
            ("guessing_bits_per_second", ".0f"),
        )]  # fmt: skip
        cells.append(invalid_cell(model.get("invalid_token_share"), model.get("invalid_token_step")))
        running = model.get("state") not in (None, "done")
        verdict = codec.get("verdict", "no run") + (f", {model['state']}" if running else "")
        rows.append([name, codec["class"], cells[0], _number(limit, ".2f"), *cells[1:], verdict])
    for name, tokens, loss, invalid in DECK:
        rows.append([f"({name})", tokens, loss, "", "", "", "", invalid, "by the deck"])
    return rows


def invalid_cell(share: float | None, step: int | None) -> str:
    """A share of invalid tokens and the step after which the run measured it last; nothing where it never has."""
    return "" if share is None else f"{share:.1%} at step {step:,}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

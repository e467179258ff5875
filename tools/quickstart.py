"""The whole way on one machine: songbook, codes, corpus, two models in training, export, measures, a song, a summary.

Every step is a verb of the command line, printed as it runs, so that each can be run again alone. A step that was
stopped goes on where it was. ``make quickstart`` runs this.
"""

import json
import shlex
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile

from megatron_music.files import write_json
from megatron_music.progress import console

RUN = Path("runs/quickstart")
HELD_OUT = RUN / "corpus" / "lyrics_to_song_held_out"
PLAIN_SAMPLING = "--top-k 0 --top-p 1.0 --guidance 1.0 --guidance-after 1.0 --repetition-penalty 1.0"
"""A held note repeats its code with a probability above the published top-p of 0.93, which would hold it for ever."""
STEPS = [
    ("Sing and play the songbook", f"songbook {RUN}/songs --takes 10"),
    ("Train a text tokenizer on its words", f"tokenizer {RUN}/songs/manifest.jsonl {RUN}/tokenizer.model --size 512"),
    ("Turn audio into codes", f"encode {RUN}/songs/manifest.jsonl {RUN}/codes --codebooks 4 --codebook-size 256"),
    ("Make token documents", f"build examples/quickstart_corpus.yaml {RUN}/corpus"),
    ("Pretrain stage 1: lyrics to codebook 0", "train examples/quickstart.yaml --processes 2"),
    ("Pretrain stage 2: codebook 0 to all codebooks", "train examples/quickstart_stage2.yaml --processes 2"),
    ("Export stage 1", f"export {RUN}/stage1 {RUN}/stage1/hf --dtype float32"),
    ("Export stage 2", f"export {RUN}/stage2 {RUN}/stage2/hf --dtype float32"),
    (
        "Measure on held-out songs",
        f"evaluate model {RUN}/stage1/hf {RUN}/corpus/lyrics_to_song {HELD_OUT} --out {RUN}/evaluation.json",
    ),
    (
        "Sing a new song",
        f"generate --stage1 {RUN}/stage1/hf --stage2 {RUN}/stage2/hf --lyrics examples/lyrics.txt "
        f"--tags examples/tags.txt {RUN}/song --max-tokens 1200 {PLAIN_SAMPLING}",
    ),
]


class PeakMemory(threading.Thread):
    """Largest resident memory of this process and all its descendants together, looked at ten times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        """Looks until the program ends."""
        here = psutil.Process()
        while True:
            total = 0
            for process in [here, *here.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.bytes = max(self.bytes, total)
            time.sleep(0.1)


def main() -> None:
    """Runs all steps and writes ``runs/quickstart/summary.json``."""
    memory, started = PeakMemory(), time.perf_counter()
    memory.start()
    for number, (title, command) in enumerate(STEPS, 1):
        console.print(f"\n[bold]{number}/{len(STEPS)}  {title}[/bold]\n$ megatron-music {command}", markup=True)
        step_started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "megatron_music", *shlex.split(command)])
        if done.returncode:
            sys.exit(f"step {number} stopped; `make quickstart` goes on from here")
        console.print(f"({time.perf_counter() - step_started:.0f} s)")
    summary = summarise(time.perf_counter() - started, memory.bytes)
    write_json(RUN / "summary.json", summary)
    show(summary)


def summarise(seconds: float, peak_bytes: int) -> dict:
    """What the run came to, from the files that its steps wrote."""
    evaluation = json.loads((RUN / "evaluation.json").read_text())["systems"][0]["model"]
    first = next(line for line in metrics("stage1") if "validation/loss" in line)
    manifest = (RUN / "songs" / "manifest.jsonl").read_text().splitlines()
    mix, sample_rate = soundfile.read(RUN / "song" / "mix.wav")
    return {
        "invalid_token_share": evaluation["invalid_token_share"],
        "audio_positions_sampled": evaluation["audio_positions_sampled"],
        "audio_loss_first": statistics.mean([first["validation/loss/vocal"], first["validation/loss/accompaniment"]]),
        "audio_loss_last": evaluation["audio_loss"],
        "bigram_loss": evaluation["bigram_loss"],
        "distinct_codes": evaluation["distinct_codes"],
        "distinct_codes_sampled": evaluation["distinct_codes_sampled"],
        "songs": len({json.loads(line)["id"].rsplit(".t", 1)[0] for line in manifest}),
        "recordings": len(manifest),
        "held_out_losses": {"stage1": losses_by_phase("stage1"), "stage2": losses_by_phase("stage2")},
        "song_seconds": len(mix) / sample_rate,
        "song_rms_dbfs": float(20 * np.log10(np.sqrt(np.mean(mix**2)) + 1e-9)),
        "seconds": seconds,
        "peak_memory_gib": peak_bytes / 2**30,
    }


def metrics(stage: str) -> list[dict]:
    """All lines that a stage's training logged."""
    return [json.loads(line) for line in (RUN / stage / "metrics.jsonl").read_text().splitlines()]


def losses_by_phase(stage: str) -> dict[str, dict[str, float]]:
    """Held-out losses by kind at the end of every phase."""
    phase_of = {line["step"]: line["phase"] for line in metrics(stage) if "phase" in line}
    losses = {}
    for line in metrics(stage):
        if "validation/loss" in line and line["step"] in phase_of:
            losses[phase_of[line["step"]]] = {
                name.removeprefix("validation/").removeprefix("loss/"): value
                for name, value in line.items()
                if name.startswith("validation/loss")
            }
    return losses


def show(summary: dict) -> None:
    """The summary in words."""
    lines = [f"\n[bold]Done in {summary['seconds'] / 60:.1f} minutes, {summary['peak_memory_gib']:.1f} GiB[/bold]"]
    lines.append("held-out loss, nats a token, at the end of each phase:")
    for stage, phases in summary["held_out_losses"].items():
        for phase, losses in phases.items():
            kinds = "  ".join(f"{kind} {value:.2f}" for kind, value in losses.items())
            lines.append(f"  {stage:7} {phase:13} {kinds}")
    verdict = "below" if summary["audio_loss_last"] < summary["bigram_loss"] else "NOT below"
    lines += [
        f"audio tokens of held-out songs: {summary['audio_loss_first']:.2f} untrained, "
        f"{summary['audio_loss_last']:.3f} trained, {verdict} a bigram's {summary['bigram_loss']:.3f}",
        f"invalid tokens in free samples: {summary['invalid_token_share']:.2%} of "
        f"{summary['audio_positions_sampled']:,} audio positions",
        f"codes in use: {summary['distinct_codes']} in the held-out songs, {summary['distinct_codes_sampled']} in the "
        "free samples",
        f"listen:   {RUN}/song/mix.wav (and vocals.wav, accompaniment.wav), {summary['song_seconds']:.0f} s",
        f"compare:  {RUN}/songs/*/mix.flac, what it learned from",
        f"curves:   tensorboard --logdir {RUN}",
        f"summary:  {RUN}/summary.json",
    ]
    console.print("\n".join(lines), markup=True)


if __name__ == "__main__":
    main()

"""The vocal range that `evaluate songs` hears in the songbook's vocal stems, beside that of their scores.

python tools/measure_vocal_range.py
python tools/measure_vocal_range.py --noise-dbfs -50
"""

import argparse
from pathlib import Path

import numpy as np

from megatron_music.evaluation.songs.voice import f0_of_audio, voice_measures
from megatron_music.songs.abc import read_abc
from megatron_music.songs.singing import SAMPLE_RATE
from megatron_music.songs.songbook import stems, syllables_of
from megatron_music.songs.takes import take_plans, timeline_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songbook", type=Path, default=Path("examples/songbook"))
    parser.add_argument("--noise-dbfs", type=float, help="add white noise of this level")
    options = parser.parse_args()
    widened = []
    for path in sorted(options.songbook.glob("*.abc")):
        song = read_abc(path)
        take = take_plans(song, 1, 0)[0]
        vocals = stems(song, take)["vocals"]
        if options.noise_dbfs is not None:
            noise = np.random.default_rng(0).normal(0, 10 ** (options.noise_dbfs / 20), len(vocals))
            vocals = vocals + noise.astype(np.float32)
        syllables = syllables_of(song, take, timeline_of(song, take))
        pitches = [note.pitch for syllable in syllables for note in syllable.notes]
        sung = max(pitches) - min(pitches)
        heard = voice_measures(f0_of_audio(vocals, SAMPLE_RATE))["vocal_range"]
        widened.append(heard - sung)
        print(f"{path.stem:24} sung {sung:2} heard {heard:2.0f} semitones", flush=True)
    exact, within = (sum(abs(by) <= most for by in widened) for most in (0, 1))
    print(f"{exact} of {len(widened)} exact, {within} within a semitone")


if __name__ == "__main__":
    main()

"""The ablations of ``examples/ablations`` from nothing: songbook, codes, excerpts, corpus, then both sides of each.

Every step leaves what is finished as it is, so that a run that was stopped goes on. Some 20 minutes a seed for all four
on one core. Options go to ``predict ablate``, such as ``--seeds 1``.
"""

import subprocess
import sys
from pathlib import Path

from megatron_music.songs.excerpts import write_excerpts
from megatron_music.vocabulary.vocabulary import Vocabulary

DATA, RUN = Path("examples/ablations"), Path("runs/ablations")
TAKES, LINES = 3, 2


def main() -> None:
    """Runs all steps from the root of the checkout."""
    codec = Vocabulary.load(DATA / "vocabulary.yaml").codec()
    _verb("songbook", RUN / "songs", "--takes", TAKES)
    _verb("tokenizer", RUN / "songs" / "manifest.jsonl", RUN / "tokenizer.model", "--size", 512)
    sizes = "--codebooks", codec.codebooks, "--codebook-size", codec.codebook_size
    _verb("encode", RUN / "songs" / "manifest.jsonl", RUN / "codes", *sizes)
    # The manifest of the codes names the audio's fields as well, `lines` among them.
    if not (RUN / "swapped").is_dir():
        print(write_excerpts(RUN / "codes" / "manifest.jsonl", RUN, codec, LINES))
    _verb("build", DATA / "corpus.yaml", RUN / "corpus")
    files = sorted(path for path in DATA.glob("*.yaml") if path.stem not in ("base", "corpus", "vocabulary"))
    _verb("predict", "ablate", *files, "--out", RUN, *sys.argv[1:])


def _verb(*words: object) -> None:
    if subprocess.run([sys.executable, "-m", "megatron_music", *map(str, words)]).returncode:
        sys.exit(f"`{words[0]}` stopped; the same command goes on from here")


if __name__ == "__main__":
    main()

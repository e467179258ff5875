"""Whether parts of a song come back: from the sound alone, and by the labels of its lyrics."""

from itertools import combinations, pairwise, product

import numpy as np

from megatron_music.evaluation.songs.inputs import Labelled
from megatron_music.songs.annotators.structure import BLOCK_S, Features, boundaries, likeness, same_parts

SHORTEST_S = 8.0
CHORUS = "chorus"
LEAST_BLOCKS = 4


def repetition(features: Features) -> tuple[dict[str, float], list[dict]]:
    """Share (%) of the time in parts that come back, and the sections: ``start`` and ``end`` in seconds, ``part``.

    Sections are cut where harmony or sound changes, and those that sound alike block by block are one part, as the
    annotator ``structure`` does it. A song of less than two shortest sections (16 s) has none.
    """
    shortest = round(SHORTEST_S / BLOCK_S)
    if len(features.level_T) < 2 * shortest:
        return {}, []
    edges = boundaries(features, shortest)
    parts = same_parts(features, edges)
    lengths = np.diff(edges)
    comes_back = [int((parts == part).sum()) > 1 for part in parts]
    sections = [
        {"start": round(start * BLOCK_S, 2), "end": round(end * BLOCK_S, 2), "part": int(part)}
        for (start, end), part in zip(pairwise(edges), parts, strict=True)
    ]
    return {"repetition": float(100 * lengths[comes_back].sum() / lengths.sum())}, sections


def chorus_return(features: Features, sections: tuple[Labelled, ...]) -> float | None:
    """Mean correlation of the choruses with each other, less that of choruses with the other labelled sections.

    Above 0, choruses are more like each other than like the rest. None where the labels name fewer than two choruses,
    or no other section, of a second or longer.
    """
    choruses, others = [], []
    for section in sections:
        sound_TD = features.sound_TD[round(section.start_s / BLOCK_S) : round(section.end_s / BLOCK_S)]
        if len(sound_TD) >= LEAST_BLOCKS:
            (choruses if section.label == CHORUS else others).append(sound_TD)
    if len(choruses) < 2 or not others:
        return None
    alike = [likeness(one, other) for one, other in combinations(choruses, 2)]
    unlike = [likeness(one, other) for one, other in product(choruses, others)]
    return float(np.mean(alike) - np.mean(unlike))

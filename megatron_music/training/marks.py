"""What a recipe sets apart within samples: tokens that do not count in the loss, and where documents end."""

from dataclasses import dataclass

import numpy as np

from megatron_music.corpus.references import References
from megatron_music.corpus.stream import Sample, SampleStream
from megatron_music.errors import InputError
from megatron_music.recipe.recipe import Recipe
from megatron_music.vocabulary.kinds import LOSS_GROUPS, Kind
from megatron_music.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Marks:
    """How the samples of one phase are marked.

    Attributes:
        without: kinds that do not count in the loss.
        references: where the references are that do not count; None where they do.
        end_of_document: the id behind which attention starts again; None where it does not.
    """

    without: tuple[Kind, ...] = ()
    references: References | None = None
    end_of_document: int | None = None

    def counted(self, index: int, sample: Sample) -> np.ndarray | None:
        """Which tokens of sample ``index`` count in the loss as labels, bool (context + 1,); None where all do."""
        if not self.without and self.references is None:
            return None
        counted = ~np.isin(sample.kinds, self.without)
        return counted if self.references is None else counted & ~self.references.mask(index)

    def document_lengths(self, sample: Sample) -> tuple[int, ...] | None:
        """Tokens of each document in the sample's inputs, summing to the context; None where it is read as one."""
        if self.end_of_document is None:
            return None
        inputs = sample.ids[:-1]
        starts = np.flatnonzero(inputs[:-1] == self.end_of_document) + 1
        return tuple(np.diff([0, *starts, len(inputs)]).tolist())


def marks_of(recipe: Recipe, vocabulary: Vocabulary, stream: SampleStream) -> list[Marks]:
    """How each phase of a recipe marks its samples.

    Raises InputError where references are left out of the loss and no source has any.
    """
    references = References(stream, vocabulary)
    losses = [recipe.loss_of(phase) for phase in recipe.phases]
    if any("reference" in loss.without for loss in losses) and not references:
        what = "names `reference`, and no source of the run was built with the task of that name"
        raise InputError("loss.without", what, "leave it out, or add such a source")
    end = vocabulary.special("<EOD>") if recipe.attention == "within_documents" else None
    marks = []
    for loss in losses:
        kinds = tuple(kind for name in loss.without if name != "reference" for kind in LOSS_GROUPS[name])
        marks.append(Marks(kinds, references if "reference" in loss.without else None, end))
    return marks

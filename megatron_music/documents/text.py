"""Plain text documents: the text and ``<EOD>``."""

import numpy as np
from pydantic import Field

from megatron_music.documents.document import Document, DocumentBuilder, DocumentContext
from megatron_music.recipe.fields import Strict
from megatron_music.songs.song import Rejected, Song


class TextOptions(Strict):
    """Options of plain text documents.

    Attributes:
        min_characters: shorter texts, white space at their ends not counted, are rejected; an empty one always is.
    """

    min_characters: int = Field(1, ge=1)


def documents(song: Song, context: DocumentContext, rng: np.random.Generator, options: TextOptions) -> list[Document]:
    """The one document of a text; raises Rejected where it is too short."""
    characters = len(song.text.strip())
    if not characters:
        raise Rejected("no_text", "the line has no text")
    if characters < options.min_characters:
        detail = f"the text has {characters} characters, fewer than {options.min_characters}"
        raise Rejected("short_text", detail, characters)
    builder = DocumentBuilder(context)
    builder.text(song.text)
    return [builder.build(song.id, 0.0)]

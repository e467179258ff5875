"""Documents of a whole song under its tags, without lyrics: the mix, or vocals and accompaniment interleaved.

``{instruction}\\n[Genre] {tags}`` and ``<SOA><codec>`` codes ``<EOA>``, then ``<EOD>``.
"""

from typing import Literal

import numpy as np

from megatron_music.documents.document import Document, DocumentBuilder, DocumentContext
from megatron_music.documents.tags import TagOptions, tag_text
from megatron_music.documents.tracks import TrackOptions, load_audio
from megatron_music.songs.song import Song

INSTRUCTIONS = {
    "mix": "Generate music based on the given tags",
    "dual": "Generate music in dual-track format based on the given tags",
}


class UnconditionalOptions(TrackOptions, TagOptions):
    """Options of documents without lyrics.

    Attributes:
        tracks: the mix, or vocals and accompaniment interleaved.
        instruction: another one than INSTRUCTIONS has for ``tracks``.
        tags: shuffled and separated by spaces, as in YuE's pretraining, or as the manifest has them.
    """

    tracks: Literal["mix", "dual"] = "mix"
    instruction: str | None = None
    tags: Literal["as_written", "shuffled"] = "shuffled"


def documents(
    song: Song, context: DocumentContext, rng: np.random.Generator, options: UnconditionalOptions
) -> list[Document]:
    """The one document of a song; raises Rejected where it has none."""
    audio = load_audio(song, context, options, options.tracks)
    instruction = INSTRUCTIONS[options.tracks] if options.instruction is None else options.instruction
    builder = DocumentBuilder(context)
    builder.text(f"{instruction}\n[Genre] {tag_text(song, rng, options)}")
    builder.audio(audio.ids, audio.kinds)
    return [builder.build(song.id, audio.frames / audio.frames_per_second)]

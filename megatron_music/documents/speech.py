"""Speech documents: clip after clip, the text that is said and the clip's audio, up to the context length.

For each clip ``{instruction}{text}`` and ``<SOA><codec>`` codes ``<EOA>``; one ``<EOD>`` behind the last clip of a
document. YuE's pretraining learned to follow lyrics from such data. The released preprocessor, which writes each clip
alone, puts a newline between instruction and text: here the option ``instruction`` is all that stands before the text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from pydantic import Field

from megatron_music.documents.document import Document, DocumentBuilder, DocumentContext, single_track
from megatron_music.documents.tracks import Track, TrackOptions, checked_rate
from megatron_music.songs.song import Rejected, Song
from megatron_music.vocabulary.kinds import Kind

INSTRUCTION = "Generate speech: "


class SpeechOptions(TrackOptions):
    """Options of speech documents.

    Attributes:
        instruction: what stands before the text, its separator included.
        instruction_dropout: share of the clips whose instruction is left out.
        context_tokens: clips of a part of the manifest are gathered, in its order, into documents of at most this many
            tokens, ``<EOD>`` included; only a clip that is longer by itself makes a longer one. Null leaves every clip
            on its own.
        track: the track that is the speech; a separated vocal where the recording has music or noise.
    """

    instruction: str = INSTRUCTION
    instruction_dropout: float = Field(0.5, ge=0, le=1)
    context_tokens: int | None = Field(8192, gt=0)
    track: Track = "mix"


def documents(song: Song, context: DocumentContext, rng: np.random.Generator, options: SpeechOptions) -> list[Document]:
    """The one document of a clip; raises Rejected where it has no text or its codes can't be used."""
    text = spoken_text(song)
    if not text:
        raise Rejected("no_text", "the clip has no text")
    codes_T = context.codes(song, options.track)[0]
    seconds = len(codes_T) / checked_rate(song, len(codes_T), options)
    dropped = rng.random() < options.instruction_dropout
    builder = DocumentBuilder(context)
    builder.text(text if dropped else options.instruction + text)
    builder.audio(*single_track(codes_T, Kind.SPEECH, context.codec))
    return [builder.build(song.id, seconds)]


def spoken_text(song: Song) -> str:
    """What is said in a clip: its text, or the lines of its segments without their labels."""
    if song.text.strip():
        return song.text
    return "\n".join(line for segment in song.segments for line in segment.lines)


def pack(documents: Iterable[Document], context: DocumentContext, options: SpeechOptions) -> Iterator[list[Document]]:
    """Gathers clips into documents of at most ``context_tokens``; only a document's last clip keeps its ``<EOD>``."""
    group: list[Document] = []
    tokens = 0
    for document in documents:
        if group and (options.context_tokens is None or tokens + len(document.ids) > options.context_tokens):
            yield group
            group, tokens = [], 0
        if group:
            group[-1] = replace(group[-1], ids=group[-1].ids[:-1], kinds=group[-1].kinds[:-1])
        group.append(document)
        tokens += len(document.ids) - 1
    if group:
        yield group

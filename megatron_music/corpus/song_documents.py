"""The documents that a source makes of one song, or the reason why it makes none."""

from functools import lru_cache
from pathlib import Path

from megatron_music.corpus.shuffle import seeded_generator
from megatron_music.corpus.spec import SourceSpec
from megatron_music.documents.document import Document, DocumentContext
from megatron_music.documents.tasks import TASKS
from megatron_music.errors import InputError
from megatron_music.songs.filters import check_song
from megatron_music.songs.song import Reject, Rejected, Song
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

VOCABULARY, TOKENIZER, CODEC = "vocabulary.yaml", "tokenizer.model", "codec"
"""Names, in a corpus folder, of what makes it self-contained."""
_PARTS = 256
_PART_SONGS = (8, 512)


def song_documents(song: Song, source: SourceSpec, seed: int, context: DocumentContext) -> list[Document] | Reject:
    """At least one document; whatever is wrong with the song ends here. Raises InputError for options at fault."""
    random = seeded_generator("documents", seed, source.name, song.id)
    try:
        check_song(song, source.filters, context.codes)
        documents = TASKS[source.task].documents(song, context, random, source.options)
        if not documents:
            raise Rejected("no_document", f"{source.task} finds nothing in the song to make a document of")
        return documents
    except Rejected as rejected:
        return rejected.reject(song.id, source.manifest)
    except InputError as error:  # the options are at fault, whatever the song
        raise InputError(f"sources.{source.name}: {error.where}", error.what, error.mend) from None
    except Exception as error:  # one song that nobody foresaw must not stop a run of a week
        return Rejected("unexpected", f"{type(error).__name__}: {error}").reject(song.id, source.manifest)


@lru_cache(maxsize=1)
def document_context(corpus: Path, codec: str, identity: str) -> DocumentContext:
    """What documents are written with, loaded once a worker; ``identity`` tells one build of a folder from the next."""
    vocabulary = Vocabulary.load(corpus / VOCABULARY)
    return DocumentContext(vocabulary, TextTokenizer(corpus / TOKENIZER, vocabulary), vocabulary.codec(codec))


def part_songs(songs: int) -> int:
    """Songs a part: enough parts to share out and to lose little, few enough files; a function of the songs alone."""
    smallest, largest = _PART_SONGS
    return min(max(-(-songs // _PARTS), smallest), largest)

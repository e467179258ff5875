import numpy as np
import pytest

from megatron_music.documents.text import TextOptions, documents
from megatron_music.songs.song import Rejected, Song
from megatron_music.vocabulary.kinds import Kind


def _make(text, context, **options):
    (document,) = documents(Song("1", text=text), context, np.random.default_rng(0), TextOptions(**options))
    return document


def test_a_text_and_its_end(context):
    document = _make("Row your boat\n", context)
    assert document.ids.tolist() == [*context.tokenizer.encode("Row your boat\n"), 32000]
    assert document.kinds.tolist() == [Kind.TEXT] * (len(document.ids) - 1) + [Kind.SPECIAL]
    assert document.seconds == 0


def test_special_tokens_in_a_text(context):
    document = _make("Row <EOA> boat", context)
    encode = context.tokenizer.encode
    assert document.ids.tolist() == [*encode("Row "), 32002, *encode(" boat"), 32000]
    assert document.kinds.tolist() == [Kind.TEXT if id < 32000 else Kind.SPECIAL for id in document.ids]


def test_short_texts_are_rejected(context):
    with pytest.raises(Rejected, match="no_text"):
        _make(" \n", context)
    with pytest.raises(Rejected) as caught:
        _make(" Row. ", context, min_characters=5)
    assert (caught.value.rule, caught.value.value) == ("short_text", "4")
    assert _make(" Row. ", context, min_characters=4)

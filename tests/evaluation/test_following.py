"""Loss behind other songs' texts: known answers, and every audio token scored behind both texts."""

import numpy as np
import pytest
import torch

from megatron_music.corpus.indexed import IndexedSource, IndexedWriter
from megatron_music.errors import InputError
from megatron_music.evaluation.following import take_apart, text_following, with_text
from megatron_music.evaluation.order import order_rise, with_frames_shuffled
from megatron_music.generation.models import ModelFolder
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.kinds import Kind

EOD, SOA, EOA, MARKER, FIRST = 300, 301, 302, 305, 306


@pytest.fixture
def write_songs(tmp_path, make_model):
    """Writes documents of (texts, frames of each segment); the texts are the tokenizer's ids of words."""
    folder = make_model("model", positions=64)
    tokenizer = ModelFolder.open(folder).tokenizer()

    def write(songs, name="held_out", seed=0):
        rng = np.random.default_rng(seed)
        with IndexedWriter(tmp_path / name) as writer:
            for texts, frames in songs:
                ids, kinds = [], []
                for text in texts:
                    words, codes = tokenizer.encode(text), (FIRST + rng.integers(0, 16, 2 * frames)).tolist()
                    ids += [*words, SOA, MARKER, *codes, EOA]
                    kinds += [Kind.TEXT] * len(words) + [Kind.SPECIAL] * 2
                    kinds += [Kind.VOCAL, Kind.ACCOMPANIMENT] * frames + [Kind.SPECIAL]
                writer.add(np.array([*ids, EOD], dtype=np.int32), np.array([*kinds, Kind.SPECIAL], dtype=np.uint8))
        return tmp_path / name

    return folder, write


def change(folder, change_network):
    network = ModelFolder.open(folder).network()
    with torch.no_grad():
        change_network(network)
    network.save_pretrained(folder)


def without_attention(network):
    """Every prediction depends on the id before it alone."""
    for layer in network.model.layers:
        layer.self_attn.o_proj.weight.zero_()


SONGS = [(["[Genre] a\nla la", "[verse]\nla\n\n"], 30), (["[Genre] b\nsun", "[verse]\nhigh\n\n"], 9),
         (["[Genre] c\nsing with me", "[chorus]\nme\n\n", "the"], 50)]  # fmt: skip


def test_a_text_blind_model_loses_nothing_wherever_documents_are_cut(write_songs):
    """It would lose or gain if one id were scored in the other's place; documents have 2 to 5 windows."""
    folder, write = write_songs
    change(folder, without_attention)
    found = text_following(folder, write(SONGS))
    assert found.songs == 3 and found.documents == [0, 1, 2]
    assert found.audio_tokens_D.tolist() == [120, 36, 300]
    assert np.abs(found.rise_DPK).max() < 1e-3
    whole = found.as_dict()["rise"]
    assert abs(whole["value"]) < 1e-5 and whole["low"] <= whole["high"]
    scored = found.tokens_DPK.sum(axis=(1, 2))
    # What no longer fits behind a longer text is scored behind neither.
    assert (scored <= found.audio_tokens_D).all() and (scored >= found.audio_tokens_D - 40).all()
    assert set(found.as_dict()["by_position"]) == {"0-255", "256-999"}
    assert set(found.as_dict()["by_kind"]) == {"vocal", "accompaniment"}


def test_the_rise_is_that_of_the_document_with_the_others_texts(write_songs):
    """Two songs that each fit into a window: the other's texts are written down and scored as a document."""
    folder, write = write_songs
    songs = [(["[Genre] a\nla", "sun "], 4), (["[Genre] b\nme ", "high"], 5)]
    source = IndexedSource(write(songs))
    network, tokenizer = ModelFolder.open(folder).network(), ModelFolder.open(folder).tokenizer()
    found = text_following(folder, source.prefix)

    def nats(ids, kinds):
        ids = np.concatenate([[EOD], ids])
        with torch.inference_mode():
            logits = network(torch.from_numpy(ids[:-1]).long()[None]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[1:]).long(), reduction="none").numpy()
        return losses[np.isin(kinds, [Kind.VOCAL, Kind.ACCOMPANIMENT])].sum()

    for number, (own, (texts, _)) in enumerate(zip(songs, songs[::-1], strict=True)):
        ids, kinds = source.document(number)
        first, second = (len(tokenizer.encode(text)) for text in own[0])
        audio = 2 * own[1] + 3
        parts = [(tokenizer.encode(texts[0]), Kind.TEXT), (ids[first : first + audio], kinds[first : first + audio])]
        parts += [
            (tokenizer.encode(texts[1]), Kind.TEXT),
            (ids[first + audio + second :], kinds[first + audio + second :]),
        ]
        other_ids = np.concatenate([part for part, _ in parts])
        other_kinds = np.concatenate([np.broadcast_to(kind, len(part)) for part, kind in parts])
        assert found.audio_nats_D[number] == pytest.approx(nats(ids, kinds), rel=1e-4)
        assert found.rise_DPK[number].sum() == pytest.approx(nats(other_ids, other_kinds) - nats(ids, kinds), rel=1e-3)
        assert found.tokens_DPK[number].sum() == 4 * own[1]


def test_takes_of_one_song_do_not_exchange_texts(write_songs):
    folder, write = write_songs
    takes = [(["[Genre] folk\nla", "[verse]\nsun\n\n"], 4), (["[Genre] rock loud\nla", "[intro]\n\n", "sun\nla"], 3)]
    found = text_following(folder, write(takes))
    assert (found.songs, found.rise()) == (1, None)
    assert found.as_dict() == {"documents": 2, "songs": 1}
    both = text_following(folder, write([*takes, (["[Genre] folk\nme", "sun"], 5)], "more"))
    assert both.songs == 2 and both.song_D.tolist() == [0, 0, 1]
    assert both.tokens_DPK.sum() == 2 * (2 * 4 + 3 * 3 + 2 * 5)


def test_texts_are_exchanged_run_by_run():
    own = [np.array([1, 2, 3]), np.array([4]), np.array([5])]
    others = [np.array([11]), np.array([12, 13]), np.array([14])]
    ids = np.array([99, 1, 2, 3, 50, 51, 4, 52, 5, 53])
    runs = np.array([-1, 0, 0, 0, -1, -1, 1, -1, 2, -1])
    swapped, origin = with_text(ids, runs, own, others)
    assert swapped.tolist() == [99, 11, 50, 51, 12, 13, 52, 14, 53]
    assert origin.tolist() == [0, -1, 4, 5, -1, -1, 7, -1, 9]
    # Behind their last text the others' begin again, without the header; a single text leaves the later ones.
    assert with_text(ids, runs, own, others[:2])[0].tolist() == [99, 11, 50, 51, 12, 13, 52, 12, 13, 53]
    assert with_text(ids, runs, own, others[:1])[0].tolist() == [99, 11, 50, 51, 4, 52, 5, 53]
    # A window that begins in the middle of a text gets no more of the other one.
    cut, _ = with_text(ids[2:6], runs[2:6], own, [np.array([11, 12, 13, 14])])
    assert cut.tolist() == [13, 14, 50, 51]


def test_documents_without_audio_are_passed_over(write_songs, tmp_path):
    folder, write = write_songs
    songs = IndexedSource(write([([], 0), (["la"], 3)]))
    assert [document.number for document in take_apart(ModelFolder.open(folder), songs, [0, 1])] == [1]
    with pytest.raises(InputError, match="empty: holds no audio tokens"):
        text_following(folder, write([([], 0)], "empty"))


def test_an_even_model_does_not_mind_another_order(write_songs):
    folder, write = write_songs
    source = write(SONGS)
    change(folder, lambda network: network.lm_head.weight.zero_())
    found = order_rise(folder, source, text_following(folder, source))
    assert abs(found.value) < 1e-5 and abs(found.high) < 1e-4


def test_frames_come_in_another_order_and_stay_whole(write_songs):
    folder, write = write_songs
    ids, kinds = IndexedSource(write(SONGS)).document(2)
    grammar = AudioGrammar(ModelFolder.open(folder).vocabulary)
    shuffled = with_frames_shuffled(ids, grammar, np.random.default_rng(0))
    audio = np.isin(kinds, [Kind.VOCAL, Kind.ACCOMPANIMENT])
    assert (shuffled[~audio] == ids[~audio]).all() and (shuffled != ids).any()
    for segment in np.split(np.flatnonzero(audio), 3):
        before, after = (sorted(map(tuple, part[segment].reshape(-1, 2).tolist())) for part in (ids, shuffled))
        assert before == after

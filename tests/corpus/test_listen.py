"""Hearing documents: codes come back as they were encoded, and sound as the codec sounds."""

import numpy as np
import pytest
import soundfile

from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.corpus.indexed import IndexedWriter
from megatron_music.corpus.inspect import DocumentReader, inspect_source
from megatron_music.corpus.listen import audio_spans, codec_range, load_codec_of_corpus, write_document_audio
from megatron_music.errors import InputError
from megatron_music.songs.codes import load_codes
from megatron_music.songs.manifest import read_manifest
from megatron_music.vocabulary.kinds import Kind


def codes_of(corpus, id: str, track: str) -> np.ndarray:
    """Codes (K, T) of a song's track, as `encode` stored them."""
    (song,) = (song for song in read_manifest(corpus.parent / "codes" / "manifest.jsonl") if song.id == id)
    return load_codes(song, track, DocumentReader(corpus / "cot").vocabulary.codec())


def spans_of(corpus, name: str, document: int):
    reader = DocumentReader(corpus / name)
    ids, kinds = reader.tokens(document)
    return audio_spans(ids, kinds, reader.parts(ids, kinds), codec_range(reader))


def test_segments_come_back_as_the_codes_of_both_tracks(sung_corpus):
    first, second = spans_of(sung_corpus, "cot", 0)
    assert (first.frames, second.frames) == (350, 350)
    for track, name in (("vocals", "vocal"), ("accompaniment", "accompaniment")):
        codes_KT = codes_of(sung_corpus, "alone", track)
        np.testing.assert_array_equal(first.codes[name], codes_KT[:1, :350])
        np.testing.assert_array_equal(second.codes[name], codes_KT[:1, 350:700])


@pytest.mark.parametrize("name", ["residual", "residual_rest"])
def test_windows_of_stage_2_come_back_with_all_codebooks(sung_corpus, name):
    windows = spans_of(sung_corpus, name, 2)
    codes_KT = codes_of(sung_corpus, "choir", "mix")
    assert [window.frames for window in windows] == [300, 300]
    for number, window in enumerate(windows):
        assert list(window.codes) == ["mix"]
        np.testing.assert_array_equal(window.codes["mix"], codes_KT[:3, 300 * number :][:, :300])


def test_an_id_of_another_codebook_is_refused(sung_corpus):
    reader = DocumentReader(sung_corpus / "cot")
    ids, kinds = reader.tokens(0)
    ids[np.flatnonzero(kinds == Kind.VOCAL)[3]] += 256
    with pytest.raises(ValueError, match="embedded codebook 0"):
        audio_spans(ids, kinds, reader.parts(ids, kinds), codec_range(reader))


def test_a_document_is_written_as_the_codec_decodes_it(sung_corpus, tmp_path):
    paths = write_document_audio(sung_corpus / "cot", 0, tmp_path)
    assert [path.name for path in paths] == ["cot-0-vocal.wav", "cot-0-accompaniment.wav", "cot-0-together.wav"]
    codec = EmbeddedCodec.load(sung_corpus / "codec")
    sounds = [soundfile.read(path)[0] for path in paths]
    vocals = codes_of(sung_corpus, "alone", "vocals")[:1]
    expected = np.concatenate([codec.decode(vocals[:, :350]), codec.decode(vocals[:, 350:700])])
    assert len(sounds[0]) == 14 * 16_000
    scale = sounds[0] @ expected / (expected @ expected)  # all three are quieter by one factor where one would clip
    np.testing.assert_allclose(sounds[0], scale * expected, atol=1e-4)
    np.testing.assert_allclose(sounds[2], sounds[0] + sounds[1], atol=1e-4)


def test_stage_2_is_written_with_all_its_codebooks(sung_corpus, tmp_path):
    (path,) = write_document_audio(sung_corpus / "residual", 2, tmp_path)
    codec = EmbeddedCodec.load(sung_corpus / "codec")
    codes_KT = codes_of(sung_corpus, "choir", "mix")
    expected = np.concatenate([codec.decode(codes_KT[:, :300]), codec.decode(codes_KT[:, 300:600])])
    samples, rate = soundfile.read(path)
    assert rate == 16_000
    assert np.corrcoef(samples, expected)[0, 1] > 0.9999


def test_a_codec_of_another_size_is_refused_in_one_line(sung_corpus, tmp_path):
    small = EmbeddedCodec(np.zeros((3, 16, 128), np.float32), 0.0)
    small.save(tmp_path / "codec")
    with pytest.raises(InputError, match="has codebooks of 16 codes, the corpus of 256; name the codec"):
        load_codec_of_corpus(DocumentReader(sung_corpus / "cot"), tmp_path / "codec")


def test_what_can_not_be_heard_is_told_in_one_line(sung_corpus, tmp_path):
    with pytest.raises(InputError, match="is a folder; name a source in it, .*/corpus/NAME"):
        write_document_audio(sung_corpus, 0, tmp_path)
    with pytest.raises(InputError, match="has no document 4; name 0 to 3"):
        write_document_audio(sung_corpus / "cot", 4, tmp_path)
    with IndexedWriter(sung_corpus.parent / "words", {}) as writer:
        vocabulary = DocumentReader(sung_corpus / "cot").vocabulary
        writer.add(np.array([300, vocabulary.special("<EOD>")]), np.array([Kind.TEXT, Kind.SPECIAL]))
    with pytest.raises(InputError, match="document 0 holds no audio"):
        write_document_audio(sung_corpus.parent / "words", 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_inspect_names_the_songs_above_the_document(sung_corpus):
    heading, song, blank, first, *_ = inspect_source(sung_corpus / "cot", 1).split("\n")
    counts = "750 vocal, 750 accompaniment"
    assert heading.startswith("cot, document 1 of 4: ") and counts in heading
    assert song == "band (en; folk, male; 15.0 s)"
    assert (blank, first) == ("", "Generate music from the given lyrics segment by segment.")

"""The published format, written down a second time in plain lists, against the tasks on songs of every shape.

The digests are those of what YuE's released preprocessor wrote from the same songs.
"""

import hashlib
import json

import numpy as np
import pytest
import sentencepiece

from megatron_music.documents.document import DocumentContext
from megatron_music.documents.tasks import TASKS
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.song import Rejected
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

SONGS, SEED = 60, 1
INSTRUCTION = "Generate music from the given lyrics segment by segment."
SPECIALS = {
    "<EOD>": 32000, "<SOA>": 32001, "<EOA>": 32002, "<SOI>": 32003, "<EOI>": 32004, "<SOV>": 32005, "<EOV>": 32006,
    "<s_local>": 32007, "<e_local>": 32008, "<s_global>": 32009, "<e_global>": 32010, "<stage_1>": 32013,
    "<stage_2>": 32017, "<s>": 1, "</s>": 2,
}  # fmt: skip
EOD, SOA, EOA, XCODEC, STAGE_1, STAGE_2 = 32000, 32001, 32002, 32016, 32013, 32017
FIRST_CODE = 45334


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, random_songs):
    return random_songs(tmp_path_factory.mktemp("published"), SONGS, SEED)


@pytest.fixture(scope="session")
def released_context(repository, yue_data):
    vocabulary = Vocabulary.load(repository / "tokenizers" / "yue.yaml")
    return DocumentContext(vocabulary, TextTokenizer(yue_data / "tokenizer.model", vocabulary), vocabulary.codec())


class Published:
    """What each form of document is, by its definition; None where a song has none."""

    def __init__(self, tokenizer_path):
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))

    def document(self, form, song):
        match form:
            case "lyrics_to_song":
                return self.lyrics_to_song(song)
            case "without_header":
                return self.lyrics_to_song(song, header=False)
            case "mix":
                return self.unconditional(song, "codec", instruction=MIX)
            case "dual":
                return self.unconditional(song, "vocals_codec", "instrumental_codec", instruction=DUAL)
            case "speech":
                return self.speech(song, TTS)
            case "speech_without_instruction":
                return self.speech(song, "")
            case "residual":
                return self.residual(song, "vocals_codec", 0)
            case "residual_without_codebook_0":
                return self.residual(song, "codec", 1)

    def text(self, text):
        found = [(text.index(name), name) for name in SPECIALS if name in text]
        if not found:
            return self._model.encode(text)
        at, name = min(found)
        return self._model.encode(text[:at]) + [SPECIALS[name]] + self.text(text[at + len(name) :])

    def tracks(self, song, *fields):
        tracks = [np.load(song[field])[0].tolist() for field in fields]
        shortest = min(map(len, tracks))
        return None if max(map(len, tracks)) - shortest > 10 else [track[:shortest] for track in tracks]

    def audio(self, *tracks):
        ids = [FIRST_CODE + code for frame in zip(*tracks, strict=True) for code in frame]
        return [SOA, XCODEC, *ids, EOA]

    def lyrics_to_song(self, song, header=True):
        tracks = self.tracks(song, "vocals_codec", "instrumental_codec")
        if tracks is None or not 49 <= (rate := len(tracks[0]) / song["audio_length_in_sec"]) <= 51:
            return None
        segments = song["splitted_lyrics"]["segmented_lyrics"]
        texts = [segment["line_content"] for segment in segments]
        ids = self.text(f"{INSTRUCTION}\n[Genre] {song['genres']}\n" + "\n".join(texts)) if header else []
        spans = 0
        for segment, text in zip(segments, texts, strict=True):
            start, end = segment["codec_frame_start"], segment["codec_frame_end"]
            if end > len(tracks[0]) or end == start or end - start < rate:
                continue
            spans += 1
            audio = self.audio(*(track[start:end] for track in tracks))
            if header:
                ids += self.text("[start_of_segment]") + self.text(text) + audio + self.text("[end_of_segment]")
            else:
                ids += self.text(f"{INSTRUCTION}\n{text}") + audio
        return [*ids, EOD] if spans else None

    def unconditional(self, song, *fields, instruction):
        tracks = self.tracks(song, *fields)
        if tracks is None:
            return None
        return self.text(f"{instruction}\n[Genre] {song['genres']}") + self.audio(*tracks) + [EOD]

    def speech(self, song, instruction):
        return self.text(instruction + song["text"]) + self.audio(*self.tracks(song, "codec")) + [EOD]

    def residual(self, song, field, first_codebook):
        codes_KT = np.load(song[field])
        ids = []
        for start in range(0, codes_KT.shape[1] - 299, 300):
            window = codes_KT[:, start : start + 300]
            if len(set(window[0].tolist())) < 25:
                continue
            ids += [SOA, STAGE_1, *(FIRST_CODE + int(code) for code in window[0]), STAGE_2]
            for frame in window.T:
                ids += [FIRST_CODE + 1024 * k + int(frame[k]) for k in range(first_codebook, 8)]
            ids.append(EOA)
        return [*ids, EOD] if ids else None


MIX = "Generate music based on the given tags"
DUAL = "Generate music in dual-track format based on the given tags"
ANY_RATE = {"code_rate_tolerance": None}
TAGS = {"tags": "as_written", **ANY_RATE}
TTS = "Generate speech: \n"
FORMS = {
    "lyrics_to_song": ("lyrics_to_song", {}),
    "without_header": ("lyrics_to_song", {"header": False}),
    "mix": ("unconditional", TAGS),
    "dual": ("unconditional", {"tracks": "dual", **TAGS}),
    "speech": ("speech", {"instruction": TTS, "instruction_dropout": 0.0, **ANY_RATE}),
    "speech_without_instruction": ("speech", {"instruction": TTS, "instruction_dropout": 1.0, **ANY_RATE}),
    "residual": ("residual", {"tracks": ["vocals"]}),
    "residual_without_codebook_0": ("residual", {"tracks": ["mix"], "repeat_codebook_0": False}),
}
"""Task and options of each form."""
DIGESTS = {
    "lyrics_to_song": (43, "de09c6710b5c6af1"),
    "without_header": (43, "c91a68b7b09611d6"),
    "mix": (60, "3a3299d34d74ceef"),
    "dual": (53, "181d886f0db69144"),
    "speech": (60, "cb5d92383c235947"),
    "speech_without_instruction": (60, "9241d8473a47d248"),
    "residual": (46, "e079298ef3cc0fda"),
    "residual_without_codebook_0": (49, "8be45f95598a6996"),
}
"""Documents of each form and the digest of their ids, one after another, as the released preprocessor wrote them."""


def _documents(manifest, context, form):
    """Each song's only document as a list of ids, or None."""
    name, options = FORMS[form]
    task = TASKS[name]
    for song in read_manifest(manifest):
        try:
            (document,) = task.documents(song, context, np.random.default_rng(0), task.options(**options))
            yield document.ids
        except Rejected:
            yield None


def _compare(manifest, context, form):
    published = Published(context.tokenizer.model_path)
    made = 0
    songs = [json.loads(line) for line in manifest.read_text(encoding="utf-8").split("\n") if line]
    for song, ids in zip(songs, _documents(manifest, context, form), strict=True):
        expected = published.document(form, song)
        assert (None if ids is None else ids.tolist()) == expected
        made += expected is not None
    return made


@pytest.mark.parametrize("form", FORMS)
def test_documents_are_the_published_format(manifest, context, form):
    assert SONGS / 2 < _compare(manifest, context, form) <= SONGS


@pytest.mark.parametrize("form", FORMS)
def test_documents_of_the_released_tokenizer(manifest, released_context, form):
    made = _compare(manifest, released_context, form)
    digest = hashlib.sha256()
    for ids in _documents(manifest, released_context, form):
        if ids is not None:
            digest.update(ids.astype("<i4").tobytes())
    assert (made, digest.hexdigest()[:16]) == DIGESTS[form]

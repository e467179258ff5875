"""Files whose header tells a wrong length, none, or that of a part; and formats that FFmpeg reads."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from megatron_music.audio import decoders
from megatron_music.audio.containers import audio_parts
from megatron_music.audio.files import MOST_MISSING_S, audio_blocks, audio_info
from megatron_music.errors import InputError

RATE, FRAMES = 16_000, 3 * 16_000 + 77
OPEN_32, OPEN_64 = 2**32 - 1, 2**63 - 1
MP3_DELAY = 576 + 529  # of LAME and of a decoder; what tells a decoder to drop them is in the Info frame


def tones(seed: int, frames: int = FRAMES, channels: int = 2, rate: int = RATE) -> np.ndarray:
    """Float32 (frames, channels) that 16 bits hold."""
    times_s = np.arange(frames)[:, None] / rate
    hz_C = 200 + 150 * (seed + np.arange(channels))
    noise = np.random.default_rng(seed).uniform(-0.05, 0.05, (frames, channels))
    return np.round((0.4 * np.sin(2 * np.pi * hz_C * times_s) + noise) * 32_767).astype(np.float32) / 32_768


def written(path: Path, seed: int = 0, **options) -> bytes:
    """What libsndfile writes."""
    rate, channels = options.pop("rate", RATE), options.pop("channels", 2)
    soundfile.write(path, tones(seed, FRAMES, channels, rate), rate, **options)
    return path.read_bytes()


def heard(path: Path) -> np.ndarray:
    """All samples; ``audio_info`` must have told how many, and every block but the last be whole."""
    blocks = list(audio_blocks(path, 0.7))
    assert {rate for _, rate in blocks} == {rate := blocks[0][1]}
    assert {len(block_SC) for block_SC, _ in blocks[:-1]} <= {round(0.7 * rate)}
    samples_SC = np.concatenate([block_SC for block_SC, _ in blocks])
    assert samples_SC.dtype == np.float32
    assert audio_info(path).duration_s == pytest.approx(len(samples_SC) / rate, abs=0.6 / rate)
    return samples_SC


def packed(content: bytes, place: int, form: str, value: int) -> bytes:
    content = bytearray(content)
    struct.pack_into(form, content, place, value)
    return bytes(content)


def wav(path, length, subtype="PCM_16", riff=None):
    content = written(path, format="WAV", subtype=subtype)
    content = packed(content, content.index(b"data") + 4, "<I", length)
    return packed(content, 4, "<I", length if riff is None else riff)


def rf64(path, length, magic=b"RF64"):
    content = written(path, format="RF64")
    place = content.index(b"ds64") + 8
    for number in range(3):
        content = packed(content, place + 8 * number, "<Q", length)
    return magic + content[4:]


def bw64(path):
    return b"BW64" + written(path, format="RF64")[4:]


def w64(path, length):
    content = written(path, format="W64")
    return packed(packed(content, 16, "<Q", length), content.index(b"data\xf3\xac") + 16, "<Q", length)


def aiff(path, frames, length):
    content = written(path, format="AIFF")
    content = packed(content, content.index(b"COMM") + 10, ">I", frames)
    return packed(content, content.index(b"SSND") + 4, ">I", length)


def au(path, length):
    return packed(written(path, format="AU"), 8, ">I", length)


def caf(path, length):
    content = written(path, format="CAF")
    return packed(content, content.index(b"data") + 4, ">q", length)


def flac(path, before=b""):
    content = written(path, format="FLAC")
    # 36 bits of STREAMINFO count the samples.
    return before + content[:21] + bytes([content[21] & 0xF0]) + bytes(4) + content[26:]


def id3(content_bytes: int) -> bytes:
    art = np.random.default_rng(5).bytes(content_bytes)
    return b"ID3\3\0\0" + bytes(content_bytes >> shift & 127 for shift in (21, 14, 7, 0)) + art


LOSSLESS = {
    "wav of a killed recorder": lambda path: wav(path, 0),
    "wav of a killed recorder, odd byte": lambda path: wav(path, 0) + b"\1",
    "wav whose data alone is 0": lambda path: wav(path, 0, riff=4 * FRAMES + 36),
    "wav from FFmpeg's pipe": lambda path: wav(path, OPEN_32),
    "wav from SoX's pipe": lambda path: wav(path, 0x7FFFF000),
    "wav of 24 bits": lambda path: wav(path, 0, "PCM_24"),
    "wav of floats": lambda path: wav(path, 0, "FLOAT"),
    "wav cut by a few frames": lambda path: written(path, format="WAV") [: -4 * 77],
    "wav with a chunk behind": lambda path: written(path, format="WAV") + b"LIST\4\0\0\0INFO",
    "wav with tags behind": lambda path: written(path, format="WAV") + id3(70_000),
    "wav with tags in front": lambda path: id3(70_000) + written(path, format="WAV"),
    "wav of a killed recorder, tags in front": lambda path: id3(70_000) + wav(path, 0),
    "wav with a filled block behind": lambda path: written(path, format="WAV") + bytes(60_000),
    "rf64, 0": lambda path: rf64(path, 0),
    "rf64, -1": lambda path: rf64(path, 2**64 - 1),
    "rf64, largest": lambda path: rf64(path, OPEN_64),
    "bw64": bw64,
    "bw64, 0": lambda path: rf64(path, 0, b"BW64"),
    "w64, 0": lambda path: w64(path, 0),
    "w64, -1": lambda path: w64(path, 2**64 - 1),
    "aiff with tags in front": lambda path: id3(999) + written(path, format="AIFF"),
    "aiff, 0": lambda path: aiff(path, 0, 0),
    "aiff from SoX's pipe": lambda path: aiff(path, 0x1FC00000, 0x7F000008),
    "au with tags in front": lambda path: id3(999) + written(path, format="AU"),
    "au, 0": lambda path: au(path, 0),
    "au, unknown": lambda path: au(path, OPEN_32),
    "caf with tags in front": lambda path: id3(999) + written(path, format="CAF"),
    "caf, -1": lambda path: caf(path, -1),
    "caf, largest": lambda path: caf(path, OPEN_64),
    "flac from a pipe": flac,
    "flac from a pipe, art in front": lambda path: flac(path, id3(70_000)),
}  # fmt: skip


@pytest.mark.parametrize("made", LOSSLESS.values(), ids=LOSSLESS)
def test_no_sample_is_lost_or_changed(tmp_path, made):
    path = tmp_path / "song"
    path.write_bytes(made(path))
    samples_SC = heard(path)
    assert FRAMES - 77 <= len(samples_SC) <= FRAMES
    np.testing.assert_array_equal(samples_SC, tones(0)[: len(samples_SC)])


@pytest.mark.parametrize("size_field", [4_000_000, 0, OPEN_32])
def test_a_wav_above_4_gib_is_as_long_as_what_is_on_disk(tmp_path, size_field):
    path = tmp_path / "song.wav"
    length = 2**32 + 4_000_000
    header = packed(packed(written(path, format="WAV"), 40, "<I", size_field), 4, "<I", size_field)[:44]
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + length - 8)
        file.write(struct.pack("<4h", 1, 2, 3, 4))
        file.write(b"LIST\4\0\0\0INFO" if size_field == 4_000_000 else b"")
    assert audio_info(path).duration_s == length / 4 / RATE
    (part,) = audio_parts(path, to_read=True)
    with part.open() as source, soundfile.SoundFile(source) as sound:
        sound.seek(length // 4 - 2)
        assert (sound.read(5, dtype="int16")).tolist() == [[1, 2], [3, 4]]


def mp3(path, seed=0, mode="CONSTANT", info=True):
    content = written(path, seed, format="MP3", bitrate_mode=mode, compression_level=0.5)
    if info:
        return content
    second = content.index(content[:2], 4)
    assert 0 < max(content.find(b"Info"), content.find(b"Xing")) < second
    return content[second:]


@pytest.mark.parametrize("before", [b"", id3(200_000)], ids=["bare", "art"])
@pytest.mark.parametrize(
    "behind", [b"", b"TAG" + bytes(125), b"\0" * 3000 + b"APETAGEX" + struct.pack("<IIII8x", 2000, 3032, 1, 0)]
)
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_without_an_info_frame_is_counted(tmp_path, mode, before, behind):
    whole, path = tmp_path / "whole.mp3", tmp_path / "song.mp3"
    whole.write_bytes(mp3(whole, mode=mode))
    path.write_bytes(before + mp3(path, mode=mode, info=False) + behind)
    samples_SC, expected_SC = heard(path), heard(whole)
    assert len(expected_SC) == FRAMES
    assert FRAMES + MP3_DELAY <= len(samples_SC) <= FRAMES + MP3_DELAY + 2 * 1152
    np.testing.assert_allclose(samples_SC[MP3_DELAY:][:FRAMES], expected_SC, atol=1e-4)


WHOLE_MP3 = {
    "art": lambda path: id3(100_000) + mp3(path),
    "zeros behind art": lambda path: id3(1000) + bytes(5000) + mp3(path),
    "much behind": lambda path: mp3(path) + id3(40_000) + b"TAG" + bytes(125),
}


@pytest.mark.parametrize("made", WHOLE_MP3.values(), ids=WHOLE_MP3)
def test_an_mp3_with_an_info_frame_is_read_as_ever_and_silently(tmp_path, made, capfd):
    whole, path = tmp_path / "whole.mp3", tmp_path / "song.mp3"
    whole.write_bytes(mp3(whole))
    path.write_bytes(made(path))
    with soundfile.SoundFile(whole) as file:  # libmpg123 rounds by how it is read
        blocks = [file.read(round(0.7 * RATE), dtype="float32") for _ in range(5)]
    expected_SC = np.concatenate(blocks)
    np.testing.assert_array_equal(heard(path), expected_SC)
    assert len(expected_SC) == FRAMES and capfd.readouterr().err == ""


def test_an_mp3_cut_in_its_last_frames_keeps_the_others(tmp_path, capfd):
    whole, path = tmp_path / "whole.mp3", tmp_path / "song.mp3"
    whole.write_bytes(mp3(whole))
    path.write_bytes(whole.read_bytes()[:-1500])
    samples_SC = heard(path)
    assert FRAMES - MOST_MISSING_S * RATE < len(samples_SC) < FRAMES
    np.testing.assert_allclose(samples_SC, heard(whole)[: len(samples_SC)], atol=1e-4)
    assert capfd.readouterr().err == ""


def test_the_second_of_two_mp3_files_is_heard_too(tmp_path):
    path, second = tmp_path / "song.mp3", tmp_path / "second.mp3"
    second.write_bytes(mp3(second, seed=3))
    path.write_bytes(mp3(path) + second.read_bytes())
    samples_SC, second_SC = heard(path), heard(second)
    behind = len(samples_SC) - FRAMES
    assert 0 <= behind - FRAMES <= 4 * 1152
    # Where it starts depends on what its encoder put in front, which FFmpeg knows of the first only.
    assert min(np.abs(samples_SC[at : at + FRAMES] - second_SC).max() for at in range(FRAMES, behind + 1)) < 1e-3


@pytest.mark.parametrize("frames", [FRAMES, FRAMES // 2, 2 * FRAMES])
def test_two_flac_files_in_one(tmp_path, frames):
    path, second = tmp_path / "song.flac", tmp_path / "second.flac"
    soundfile.write(second, tones(1, frames), RATE)
    path.write_bytes(written(path, format="FLAC") + second.read_bytes())
    np.testing.assert_array_equal(heard(path), np.concatenate([tones(0), tones(1, frames)]))


def chain(path: Path, *links: dict) -> list[np.ndarray]:
    """Writes Ogg streams one behind the other; gives what each holds alone."""
    contents = [written(path, seed, format="OGG", **options) for seed, options in enumerate(links)]
    alone = []
    for content in contents:
        path.write_bytes(content)
        alone.append(soundfile.read(path, dtype="float32", always_2d=True)[0])
    path.write_bytes(b"".join(contents))
    return alone


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_all_links_of_an_ogg_chain_are_read(tmp_path, subtype):
    path = tmp_path / "song.ogg"
    alone = chain(path, *3 * [{"subtype": subtype}])
    np.testing.assert_array_equal(heard(path), np.concatenate(alone))


def test_an_ogg_file_twice_has_one_serial_number_and_two_links(tmp_path):
    path = tmp_path / "song.ogg"
    (alone_SC,) = chain(path, {})
    path.write_bytes(2 * path.read_bytes())
    np.testing.assert_array_equal(heard(path), np.concatenate([alone_SC, alone_SC]))


def test_links_of_other_rates_and_channels_become_like_the_first(tmp_path):
    path = tmp_path / "song.ogg"
    first_SC, second_SC = chain(path, {}, {"rate": 24_000, "channels": 1})
    samples_SC = heard(path)
    assert samples_SC.shape == (FRAMES + round(FRAMES * RATE / 24_000), 2)
    np.testing.assert_array_equal(samples_SC[:FRAMES], first_SC)
    np.testing.assert_array_equal(samples_SC[FRAMES:, 0], samples_SC[FRAMES:, 1])
    middle_S = samples_SC[FRAMES + 8000 :, 0][:16_000]
    assert np.abs(np.fft.rfft(middle_S)).argmax() == 350  # Hz, of a second
    assert middle_S.std() == pytest.approx(second_SC[12_000:36_000].std(), rel=0.02)


def encoded(path: Path, codec: str, file_format: str | None = None, video: bool = False, **options) -> None:
    """Writes tones through FFmpeg."""
    with av.open(str(path), "w", format=file_format, options=options) as container:
        container.metadata["title"] = "Song"
        pictures = container.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p") if video else None
        stream = container.add_stream(codec, rate=48_000, layout="stereo")
        stream.bit_rate = 128_000
        samples_SC = tones(0, 3 * 48_000, rate=48_000)
        for start in range(0, len(samples_SC), 1024):
            packed_1S = np.ascontiguousarray(samples_SC[start : start + 1024].reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(packed_1S, "flt", "stereo")
            frame.sample_rate, frame.time_base, frame.pts = 48_000, Fraction(1, 48_000), start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for _ in range(30 if video else 0):
            container.mux(pictures.encode(av.VideoFrame(32, 32, "yuv420p")))
        if video:
            container.mux(pictures.encode(None))


FORMATS = {
    "m4a": ("song.m4a", "aac", {}, 0),
    "m4a, lossless": ("song.m4a", "alac", {}, 0),
    "m4a in fragments": ("song.m4a", "aac", {"movflags": "frag_keyframe+empty_moov"}, 0.05),
    "aac": ("song.aac", "aac", {}, 0.05),
    "mp4 with pictures": ("song.mp4", "aac", {"video": True}, 0),
    "webm": ("song.webm", "libopus", {}, 0.02),
    "mka": ("song.mka", "flac", {}, 0),
    "wma": ("song.wma", "wmav2", {}, 0.05),
    "flac in ogg": ("song.oga", "flac", {}, 0),
}


@pytest.mark.parametrize(("name", "codec", "options", "most_s"), FORMATS.values(), ids=FORMATS)
def test_what_libsndfile_does_not_know_ffmpeg_reads(tmp_path, name, codec, options, most_s, capfd):
    path = tmp_path / name
    encoded(path, codec, **options)
    samples_SC, expected_SC = heard(path), tones(0, 3 * 48_000, rate=48_000)
    assert abs(len(samples_SC) - len(expected_SC)) <= most_s * 48_000
    # By how much a codec without a place for it delays the sound.
    product = np.fft.irfft(np.fft.rfft(samples_SC[:131_072, 0]) * np.conj(np.fft.rfft(expected_SC[:131_072, 0])))
    delay = (product.argmax() + 65_536) % 131_072 - 65_536
    assert abs(delay) <= most_s * 48_000
    aligned_SC = samples_SC[max(delay, 0) :][1000:120_000] - expected_SC[max(-delay, 0) :][1000:120_000]
    assert np.abs(aligned_SC).mean() < (1e-4 if codec in ("alac", "flac") else 0.03)
    if path.suffix != ".aac":
        assert audio_info(path).metadata["title"] == "Song"
    assert capfd.readouterr().err == ""


def cut_m4a(path: Path) -> bytes:
    encoded(path.with_suffix(".m4a"), "aac", movflags="faststart")
    return path.with_suffix(".m4a").read_bytes()[:-20_000]


NOT_WHOLE = {
    "wav": (lambda path: written(path, format="WAV")[:100_044], r"ends after 1.56 of the 3.00 s that it announces"),
    "aiff": (lambda path: written(path, format="AIFF")[:100_054], r"ends after 1.56 of the 3.00 s that it announces"),
    "caf": (lambda path: written(path, format="CAF")[:110_000], r"ends after 1.\d\d of the 3.00 s that it announces"),
    "flac": (lambda path: written(path, format="FLAC")[:60_000], r"ends after \d.\d\d of the 3.00 s that it announces"),
    "mp3": (lambda path: mp3(path)[:20_000], r"ends after \d.\d\d of the 3.00 s that it announces"),
    "mp3 with a hole": (
        lambda path: mp3(path)[:10_000] + bytes(8000) + mp3(path)[18_000:],
        r"ends after \d.\d\d of the 3.00 s that it announces",
    ),
    "m4a": (cut_m4a, r"ends after \d.\d\d of the 3.00 s that it announces"),
    "wav whose header was not brought up to date": (
        lambda path: wav(path, 64_000),
        r"announces 1.00 s and goes on behind them for 2.00 s; cut off what is no audio, or save the whole",
    ),
    "two wav files": (
        lambda path: 2 * written(path, format="WAV"),
        r"announces 3.00 s and goes on behind them for 3.01 s; cut off",
    ),
    "au": (lambda path: au(path, 64_000), r"announces 1.00 s and goes on behind them for 2.00 s; cut off"),
    "numbers": (
        lambda path: packed(wav(path, 0, "FLOAT"), 20_000, "<f", float("nan")),
        "holds samples that are not finite numbers",
    ),
}


@pytest.mark.parametrize(("made", "told"), NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_what_is_missing_or_left_over_is_told(tmp_path, made, told, capfd):
    path = tmp_path / "song"
    path.write_bytes(made(path))
    with pytest.raises(InputError, match=f"^{path}: {told}"):
        list(audio_blocks(path))
    assert capfd.readouterr().err == ""


def test_pictures_alone_and_playlists_are_no_audio(tmp_path):
    silent, text = tmp_path / "silent.mp4", tmp_path / "list.mp3"
    with av.open(str(silent), "w") as container:
        pictures = container.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p")
        container.mux(pictures.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(pictures.encode(None))
    written(tmp_path / "song.wav", format="WAV")
    text.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{tmp_path}/song.wav\n#EXT-X-ENDLIST\n")
    for path, told in ((silent, "there is none in it"), (text, "can't be read as audio")):
        for read in (audio_info, lambda path: list(audio_blocks(path))):
            with pytest.raises(InputError, match=told):
                read(path)


def test_nothing_is_decoded_where_the_header_can_be_trusted(tmp_path, monkeypatch):
    for name, options in {
        "a.wav": {},
        "a.w64": {},
        "a.flac": {},
        "a.aiff": {},
        "a.caf": {},
        "a.mp3": {"bitrate_mode": "VARIABLE"},
        "a.ogg": {},
        "a.opus": {"format": "OGG", "subtype": "OPUS"},
        "b.wav": {"format": "RF64"},
    }.items():
        written(tmp_path / name, **options)
    chain(tmp_path / "chain.ogg", {}, {})
    encoded(tmp_path / "a.m4a", "aac")
    (tmp_path / "open.wav").write_bytes(wav(tmp_path / "open.wav", 0))
    for kind in (decoders._Sndfile, decoders._Ffmpeg):
        monkeypatch.setattr(kind, "blocks", None)
    lengths_s = {path.name: audio_info(path).duration_s for path in tmp_path.iterdir()}
    assert len(lengths_s) == 12
    assert lengths_s.pop("chain.ogg") == 2 * FRAMES / RATE and lengths_s.pop("a.m4a") == 3
    assert set(lengths_s.values()) == {FRAMES / RATE}


@pytest.mark.parametrize("form", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3", "m4a"])
def test_whatever_a_damaged_header_says_it_is_read_or_told_in_one_line(tmp_path, form, capfd):
    path, random = tmp_path / f"song.{form.lower()}", np.random.default_rng(1)
    if form == "m4a":
        encoded(path, "aac", movflags="faststart")
    else:
        soundfile.write(path, tones(0, 2000), RATE, format=form)
    content = path.read_bytes()
    for _ in range(40):
        damaged = bytearray(content)
        for place in random.integers(0, 100, 4):
            damaged[place : place + 4] = random.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", random.bytes(4)])
        path.write_bytes(damaged)
        for read in (audio_info, lambda path: list(audio_blocks(path))):
            try:
                read(path)
            except InputError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert form == "MP3" or capfd.readouterr().err == ""  # libmpg123 writes of damage within frames

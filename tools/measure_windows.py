"""What windows cost a codec: the share of codes that equal those of the whole track, by length of window.

Example: python tools/measure_windows.py song.flac --codec xcodec --weights FOLDER --windows 10 30 60
"""

import argparse

from megatron_music.audio.batches import encode_tracks
from megatron_music.audio.codec import CODEC_NAMES, load_codec
from megatron_music.audio.files import read_audio


def main() -> None:
    """Prints one line for each length of window: the share in the first codebook, and in all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--codec", choices=CODEC_NAMES, default="xcodec")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=float, nargs="+", default=[10, 30, 60], help="seconds")
    options = parser.parse_args()
    codec = load_codec(options.codec, options.weights, options.device)
    tracks = [read_audio(path, codec.sample_rate) for path in options.audio]
    whole = [codec.encode(samples) for samples in tracks]
    for window_seconds in options.windows:
        equal = [0, 0, 0, 0]
        for codes_KT, whole_KT in zip(encode_tracks(codec, tracks, 0, window_seconds), whole, strict=True):
            if isinstance(codes_KT, Exception):
                raise codes_KT
            frames = min(codes_KT.shape[1], whole_KT.shape[1])
            same_KT = codes_KT[:, :frames] == whole_KT[:, :frames]
            counts = [same_KT[0].sum(), same_KT[0].size, same_KT.sum(), same_KT.size]
            equal = [total + int(count) for total, count in zip(equal, counts, strict=True)]
        first, all_codebooks = equal[0] / equal[1], equal[2] / equal[3]
        print(f"{window_seconds:g} s: first codebook {first:.2%}, all codebooks {all_codebooks:.2%}")


if __name__ == "__main__":
    main()

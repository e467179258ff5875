"""A conversion's result in a line."""

from megatron_music.conversion.written import written_in_words
from megatron_music.files import write_json


def test_weights_are_counted_and_their_type_is_named(tmp_path):
    (tmp_path / "codec").mkdir()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "codec/codec.safetensors"):
        (tmp_path / name).write_bytes(bytes(1_000_000))
    write_json(tmp_path / "config.json", {"dtype": "bfloat16"})
    assert written_in_words(tmp_path) == f"{tmp_path}: 2 files of weights in bfloat16, 3.0 MB in all"


def test_one_file_without_a_type(tmp_path):
    (tmp_path / "__0_0.distcp").write_bytes(bytes(60_000))
    assert written_in_words(tmp_path) == f"{tmp_path}: 1 file of weights, 0.1 MB in all"

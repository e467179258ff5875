"""What all annotators have in common: names, options, packages, weights and the names of their files."""

import sys

import pytest

from megatron_music.errors import InputError
from megatron_music.songs.annotators import ANNOTATORS, load_annotator
from megatron_music.songs.annotators.common import file_name

PACKAGES = {"separate": "demucs", "language": "lingua", "transcribe": "faster_whisper"}
NETWORKS = {"separate", "tags", "transcribe"}


def test_the_names():
    assert ANNOTATORS == ("separate", "structure", "tempo", "tags", "language", "transcribe", "align")
    for name in set(ANNOTATORS) - NETWORKS - {"language"}:
        assert load_annotator(name).name == name


def test_an_unknown_name_or_option_is_told_with_the_nearest():
    with pytest.raises(InputError, match=r"annotator 'seperate': is not known; did you mean separate\?"):
        load_annotator("seperate")
    with pytest.raises(InputError, match="name one of separate, structure, tempo,"):
        load_annotator("weather")
    with pytest.raises(InputError, match=r"annotator separate: wieghts: unknown field; did you mean weights\?"):
        load_annotator("separate", {"wieghts": "x"})
    with pytest.raises(InputError, match="annotator structure: shortest: found '1'; write 2 or more"):
        load_annotator("structure", {"shortest": "1"})
    with pytest.raises(InputError, match="annotator align: overwrite: found 'perhaps'; write true or false"):
        load_annotator("align", {"overwrite": "perhaps"})


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_told_with_its_extra(monkeypatch, tmp_path, name):
    package = PACKAGES[name]
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    options = {"weights": str(tmp_path)} if name in NETWORKS else {}
    with pytest.raises(InputError, match=r"needs the package .*; pip install 'megatron-music\[corpus\]'"):
        load_annotator(name, options)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_weights_that_are_not_there_are_no_reason_to_ask_the_network(monkeypatch, name):
    import socket

    def refuse(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for weights in ("./nowhere", "/nowhere/at/all", "nowhere.th", "nowhere"):
        with pytest.raises(InputError, match="no such file or folder"):
            load_annotator(name, {"weights": weights})


def test_file_names_are_safe_and_of_one_song_each():
    ids = ["a", "A", "a/b", "a b", "a_b", "../../etc/passwd", "我爱你", "x" * 500, "a\x00b", "", ".", "a/b/", "\udce9"]
    names = [file_name(id) for id in ids]
    assert len({name.lower() for name in names}) == len(ids)
    for name in names:
        folder, _, rest = name.partition("/")
        assert len(folder) == 2 and "/" not in rest and not rest.startswith(".") and name.isascii() and len(name) < 100
    assert file_name("a", 1) != file_name("a", 2) and file_name("a", 1) == file_name("a", 1)

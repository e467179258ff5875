"""Files of one song find each other, whatever system spelled their names; files of two songs do not."""

import unicodedata

import pytest

from megatron_music.songs.pairing import PairedFiles, pair, song_file, stems


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def paired(*paths: str) -> list[PairedFiles]:
    folders: dict[str, list[str]] = {}
    for path in paths:
        place, _, name = path.rpartition("/")
        folders.setdefault(place, []).append(name)
    found = [song_file(place, name, stems(names)) for place, names in folders.items() for name in names]
    return pair(file for file in found if file)


def chosen(*paths: str) -> dict[str, dict[str, str]]:
    return {song.id: song.chosen()[0] for song in paired(*paths)}


@pytest.mark.parametrize(
    ("id", "others"),
    [
        ("Take On Me", ["take on me.VOCALS.wav", "TAKE ON ME.instrumental.Flac", "take On me.Tags.TXT"]),
        ("Straße", ["STRASSE.lrc", "strasse.tags.txt"]),
        (nfd("Für Elise"), ["Für Elise.txt", nfd("für elise.vocals.wav")]),
        ("Für Elise", [nfd("FÜR ELISE.txt"), nfd("Für Elise.json")]),
        ("사랑", [nfd("사랑.lrc")]),
        (nfd("パパ"), ["パパ.lrc"]),
        ("Ångström", ["\u212bngstro\u0308m.txt"]),
        ("a\u00a0b", ["a b.lrc", "A  B.tags.txt", "a\u3000b .json"]),
        ("Album/1. S.O.S. (x) [y]", ["album/1. s.o.s. (X) [Y].lrc", "ALBUM/1. S.o.S. (x) [y]/Vocals.wav"]),
        ("Song/x", ["song/X/LYRICS.TXT", "Song/x/Tags.txt", "song/x/No_Vocals.wav"]),
    ],
)  # fmt: skip
def test_one_song_whose_id_is_the_mixs_own_spelling(id, others):
    (song,) = paired(*others, f"{id}.MP3")
    assert song.id == id and song.chosen()[1] == []
    assert sorted(song.chosen()[0].values()) == sorted([*others, f"{id}.MP3"])


def test_without_a_mix_the_vocals_name_the_song():
    assert chosen("b.Instrumental.wav", "B.vocals.wav", "b.txt") == {
        "B": {"accompaniment": "b.Instrumental.wav", "vocals": "B.vocals.wav", ".txt": "b.txt"}
    }


def test_two_songs_that_differ_by_case_alone_stay_apart_with_what_is_spelled_like_them():
    songs = {song.id: song for song in paired("Go.wav", "go.mp3", "Go.lrc", "go.Vocals.wav", "GO.tags.txt")}
    assert {id: (song.chosen()[0], song.alike) for id, song in songs.items()} == {
        "GO": ({".tags.txt": "GO.tags.txt"}, ("Go", "go")),
        "Go": ({"mix": "Go.wav", ".lrc": "Go.lrc"}, ("go",)),
        "go": ({"mix": "go.mp3", "vocals": "go.Vocals.wav"}, ("Go",)),
    }
    assert not songs["GO"].has_audio


def test_the_form_of_unicode_is_nearer_than_case():
    songs = chosen(nfd("Été.wav"), nfd("ÉTÉ.wav"), "Été.lrc", "ÉTÉ.txt")
    assert songs == {
        nfd("Été"): {"mix": nfd("Été.wav"), ".lrc": "Été.lrc"},
        nfd("ÉTÉ"): {"mix": nfd("ÉTÉ.wav"), ".txt": "ÉTÉ.txt"},
    }


def test_the_same_name_in_both_forms_is_two_songs():
    assert [(song.id, song.alike) for song in paired("é.wav", nfd("é.wav"))] == [(nfd("é"), ("é",)), ("é", (nfd("é"),))]


def test_names_that_differ_by_more_are_other_songs():
    names = ["song.wav", "song (1).wav", "song 2.wav", "songs.wav", "song-.wav", "sóng.wav", "ｓong.wav", "x/song.wav"]
    assert chosen(*names) == {name.removesuffix(".wav"): {"mix": name} for name in names}


def test_of_several_texts_the_one_spelled_like_the_song_is_taken():
    (song,) = paired("A.wav", "a.lrc", "A.lrc", "A/lyrics.lrc", "A.mp3")
    assert song.chosen()[0] == {"mix": "A.wav", ".lrc": "A/lyrics.lrc"}
    assert [file.path for file in song.chosen()[1]] == ["A.mp3", "A.lrc", "a.lrc"]


def test_blanks_behind_a_suffix_and_stems_in_any_case():
    assert chosen("a.wav ", "a.LRC ") == {"a": {"mix": "a.wav ", ".lrc": "a.LRC "}}
    assert [song_file("", name, {"a.vocals"}).role for name in ("A.Drums.wav", "B.Drums.wav")] == ["further", "mix"]

from fractions import Fraction

import pytest

from megatron_music.errors import InputError
from megatron_music.songs.abc import read_abc

HEADER = """X:1
T:Test
C:Nobody
S:nowhere
M:2/4
L:1/8
Q:1/4=120
%%language en
%%genre folk
%%voice male bright
%%instruments piano
%%order verse
K:G
"""
MUSIC = 'P:verse\nG/A/|"G"Bd d>e|(3FGA ^F=F|"D"d2- d2|\nw:Oh,_ come from Al-a-ba-_ma with my own_\n'


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "song.abc"
        path.write_text(text)
        return read_abc(path)

    return read


def test_pitches_and_times(read):
    song = read(HEADER + MUSIC)
    quarter = Fraction(1)
    notes = [(float(n.start), float(n.duration), n.pitch) for n in song.notes]
    # The key of G raises F; accidentals last until the bar line.
    assert notes == [
        (0, 0.25, 67), (0.25, 0.25, 69),
        (0.5, 0.5, 71), (1, 0.5, 74), (1.5, 0.75, 74), (2.25, 0.25, 76),
        (2.5, pytest.approx(1 / 3), 66), (pytest.approx(2.5 + 1 / 3), pytest.approx(1 / 3), 67),
        (pytest.approx(2.5 + 2 / 3), pytest.approx(1 / 3), 69), (3.5, 0.5, 66), (4, 0.5, 65),
        (4.5, 2, 74),
    ]  # fmt: skip
    assert (song.pickup, song.length, song.bar) == (quarter / 2, quarter * 13 / 2, 2)
    assert [(float(chord.start), chord.name) for chord in song.chords] == [(0.5, "G"), (4.5, "D")]


def test_syllables_stand_on_their_notes(read):
    (line,) = read(HEADER + MUSIC).sections[0].lines
    assert line.text == "Oh, come from Alabama with my own"
    assert [(s.word, s.index, len(s.notes)) for s in line.syllables] == [
        ("Oh,", 0, 2), ("come", 0, 1), ("from", 0, 1), ("Al-a-ba-ma", 0, 1), ("Al-a-ba-ma", 1, 1),
        ("Al-a-ba-ma", 2, 2), ("Al-a-ba-ma", 3, 1), ("with", 0, 1), ("my", 0, 1), ("own", 0, 1),
    ]  # fmt: skip


def test_order_repeats_sections_with_their_verses(read):
    body = 'P:verse\n"G"G4|\nw:one\nw:two\nP:chorus\n"C"c4|\nw:la\nP:verse2\n"C"c2c2|\nw:high-er\n'
    song = read((HEADER + body).replace("%%order verse", "%%order verse chorus verse chorus verse2"))
    assert [(section.label, float(section.start)) for section in song.sections] == [
        ("verse", 0), ("chorus", 2), ("verse", 4), ("chorus", 6), ("verse", 8)
    ]  # fmt: skip
    assert [section.lines[0].text for section in song.sections] == ["one", "la", "two", "la", "higher"]


def test_hyphens_holds_and_blanks(read):
    body = 'P:verse\n"G"GGGG|GGGG|GGGG|\nw:Prê- te\\--moi ta~belle_ plu - me * ou sleep_-ing\n'
    (line,) = read(HEADER + body).sections[0].lines
    assert line.text == "Prête-moi ta belle plume ou sleeping"
    assert sum(len(s.notes) for s in line.syllables) < 12  # repeated pitches of one syllable are one note
    assert [s.word for s in line.syllables][-3:] == ["ou", "sleep-ing", "sleep-ing"]


@pytest.mark.parametrize(
    ("change", "line", "what"),
    [
        (("w:Oh,_ come", "w:Oh, come"), 16, "12 syllables under 13 notes"),
        (("Bd d>e|", "Bd d>e G|"), 15, "a bar of 2.5 quarter notes in a meter with 2"),
        (("Bd d>e|", "Bd {a}d>e|"), 15, "can't read '{a}d>e'"),
        (("Bd d>e|", "Bd d>e:|"), 15, "can't read ':|"),
        (("P:verse\n", ""), 14, "music before the first section"),
        (("%%order verse", "%%order verse chorus"), 12, "section chorus is not there"),
        (("%%genre folk", "%%genus folk"), 9, "directive %%genus is not known"),
        (("K:G", "K:H"), 13, "key 'H' is not known"),
        (("L:1/8", "L:1/0"), 6, "'1/0' is not a fraction"),
        (("Q:1/4=120", "Q:fast"), 7, "'fast' can't be read"),
        (("w:Oh", "W:Oh"), 16, "field W: is not read"),
        (("T:Test", "T:Test\nT:Again"), 3, "T is given twice"),
    ],
)
def test_errors_name_the_line_and_the_mend(read, change, line, what):
    text = HEADER + MUSIC
    assert change[0] in text
    with pytest.raises(InputError) as caught:
        read(text.replace(*change, 1))
    message = str(caught.value)
    assert f"song.abc: line {line}: " in message and what in message
    assert caught.value.mend and "\n" not in message


def test_missing_fields_and_lyrics_are_errors(read, tmp_path):
    with pytest.raises(InputError, match="has no Q line"):
        read((HEADER + MUSIC).replace("Q:1/4=120\n", ""))
    with pytest.raises(InputError, match="line 17: 0 lines of lyrics below a line of notes in a section with 1"):
        read(HEADER + 'P:verse\n"G"G4|\nw:one\nG4|\n')
    with pytest.raises(InputError, match="has no chord symbols"):
        read(HEADER + MUSIC.replace('"G"', "").replace('"D"', ""))
    with pytest.raises(InputError, match="no such file"):
        read_abc(tmp_path / "nowhere.abc")


def test_melodies_agree_with_music21(repository):
    """music21 reads the same pitches and lengths from the music of every song."""
    converter = pytest.importorskip("music21").converter
    compared = 0
    for path in sorted((repository / "examples" / "songbook").glob("*.abc")):
        text = path.read_text()
        header = [line for line in text.splitlines() if line[:2] in ("X:", "M:", "L:", "K:")]
        sections = {section.label: section for section in reversed(read_abc(path).sections)}
        for part in text.split("\nP:")[1:]:
            label, *lines = part.splitlines()
            music = [line for line in lines if not line.startswith("w:")]
            theirs = converter.parseData("\n".join([*header, *music]), format="abc").flatten()
            theirs = [(n.offset, n.pitch.midi, n.quarterLength) for n in theirs.getElementsByClass("Note")]
            if label not in sections:
                continue
            ours = [n for line in sections[label].lines for s in line.syllables for n in s.notes]
            start = sections[label].start
            # Notes of one pitch that are held on one syllable are one note here and several there.
            theirs_at = {at: (pitch, at + length) for at, pitch, length in theirs}
            for note in ours:
                at = note.start - start
                while at < note.start - start + note.duration:
                    pitch, at = theirs_at.pop(at)
                    assert pitch == note.pitch
                assert at == note.start - start + note.duration
            assert not theirs_at, path
            compared += 1
    assert compared >= 24

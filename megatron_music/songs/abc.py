"""Reads songs in ABC notation: melody, chord symbols, lyrics under the notes, and sections.

This is a strict reader of a small part of ABC 2.1 (https://abcnotation.com/wiki/abc:standard:v2.1). music21 also reads
ABC, but drops the ``w:`` lyrics, and what it does not understand it skips in silence; a corpus needs every syllable on
its note, and an error for every slip.

What is read: the fields ``X T C O S N Z M L Q K`` (``Q:1/4=100``), chord symbols ``"G7"``, notes with accidentals,
octaves, lengths, broken rhythm (``>`` ``<``), triplets ``(3``, ties and slurs, rests ``z``, plain, double and final
bar lines, sections as ``P:verse`` and lyrics as ``w:`` (``-`` between syllables, ``_`` for one more note, ``*`` for a
note without text, ``~`` for a space inside a note). Several ``w:`` lines below a music line are successive verses.
A music line with its ``w:`` line is one line of the lyrics. Our own header lines, legal ABC stylesheet directives:
``%%language en``, ``%%genre``, ``%%mood``, ``%%voice female bright``, ``%%instruments guitar, bass``,
``%%order verse chorus verse2 chorus`` (repeats; digits tell sections of one label apart) and ``%%intro "G" "D7"`` (the
chords of bars before the song).
"""

import re
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.files import read_text

INFORMATION_FIELDS = set("XTCOSNZMLQK")
DIRECTIVES = ("language", "genre", "mood", "voice", "instruments", "order", "intro")
SHARPS_OF_MAJOR = {"C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5, "F": -1, "Bb": -2, "Eb": -3, "Ab": -4, "Db": -5}
SHARPS_OF_MODE = {"": 0, "maj": 0, "m": -3, "min": -3, "dor": -2, "mix": -1, "lyd": 1, "phr": -4}
HYPHEN = "\u2011"  # stands for a hyphen that is part of a word, written \\- in ABC
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
TOKEN = re.compile(
    r"""(?P<space>[\s`]+) | "(?P<chord>[^"]*)" | (?P<tuplet>\(3) | (?P<slur>[()]) | (?P<broken>[><]) | (?P<tie>-)
    | (?P<bar>\|\||\|\]|\|(?![:\d]))
    | (?P<accidental>\^\^|\^|__|_|=)? (?P<name>[A-Ga-gz]) (?P<octave>[,']*) (?P<above>\d*) (?P<slash>/*) (?P<below>\d*)
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Note:
    """A sung or silent stretch: times in quarter notes, pitch as a MIDI number (None in a rest).

    A tie needs no mark here: notes of one pitch below one syllable are one note.
    """

    start: Fraction
    duration: Fraction
    pitch: int | None
    line_number: int


@dataclass(frozen=True)
class Syllable:
    """Letters sung on one note or more (tied notes are one here), and the word that they are part ``index`` of."""

    word: str
    index: int
    count: int
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Line:
    """One line of the lyrics as a reader sees it, and its syllables in time."""

    text: str
    syllables: tuple[Syllable, ...]


@dataclass(frozen=True)
class Section:
    """A labelled stretch (``verse``) from ``start`` to the next section, in quarter notes."""

    label: str
    start: Fraction
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class ChordSymbol:
    """A chord that sounds from ``start`` (quarter notes) until the next one."""

    start: Fraction
    name: str
    line_number: int


@dataclass(frozen=True)
class AbcSong:
    """A whole song in the order in which it is sung.

    ``bar`` is the length of a bar and ``pickup`` that of the upbeat before the first full bar, in quarter notes;
    ``tempo`` counts quarter notes a minute; ``beat`` is 3/2 in compound meters.
    """

    path: Path
    fields: dict[str, str]
    lines_of_fields: dict[str, int]
    meter: tuple[int, int]
    tempo: float
    sections: tuple[Section, ...]
    chords: tuple[ChordSymbol, ...]
    intro: tuple[str, ...]
    pickup: Fraction
    length: Fraction

    @property
    def bar(self) -> Fraction:
        return Fraction(4 * self.meter[0], self.meter[1])

    def where(self, field: str) -> str:
        """File and line of a header field or directive, for error messages."""
        return f"{self.path}: line {self.lines_of_fields[field]}"

    @property
    def notes(self) -> list[Note]:
        """All sung notes in order."""
        return [n for s in self.sections for line in s.lines for syllable in line.syllables for n in syllable.notes]


@dataclass
class _MusicLine:
    """A line of music before the song is put in order; times count from the beginning of its section."""

    number: int
    notes: list[Note] = field(default_factory=list)
    chords: list[ChordSymbol] = field(default_factory=list)
    bars: list[tuple[str, Fraction]] = field(default_factory=list)
    verses: list[tuple[int, str]] = field(default_factory=list)


def read_abc(path: Path) -> AbcSong:
    """Reads one song; raises InputError with file and line for all that this reader does not take."""
    reader = _Reader(path)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        reader.read_line(number, line.rstrip())
    return reader.song()


class _Reader:
    def __init__(self, path: Path):
        self.path = path
        self.fields: dict[str, str] = {}
        self.lines_of_fields: dict[str, int] = {}
        self.parts: dict[str, list[_MusicLine]] = {}
        self.part_lengths: dict[str, Fraction] = {}
        self.part: str | None = None
        self.position = Fraction(0)
        self.key_accidentals: dict[str, int] = {}
        self.unit = Fraction(1, 2)

    def error(self, number: int | None, what: str, mend: str) -> InputError:
        return InputError(f"{self.path}: line {number}" if number else self.path, what, mend)

    def read_line(self, number: int, line: str) -> None:
        if line.startswith("%%"):
            self._read_directive(number, line[2:])
        elif not line or line.startswith("%"):
            return
        elif re.match(r"[A-Za-z]:", line) and line[1] == ":":
            self._read_field(number, line[0], line[2:].strip())
        else:
            self._read_music(number, line)

    def _read_directive(self, number: int, text: str) -> None:
        name, _, value = text.partition(" ")
        if name not in DIRECTIVES:
            raise self.error(number, f"directive %%{name} is not known", f"use one of {', '.join(DIRECTIVES)}")
        self._set(number, name, value.strip())

    def _set(self, number: int, name: str, value: str) -> None:
        if name in self.fields:
            raise self.error(number, f"{name} is given twice", f"first on line {self.lines_of_fields[name]}; keep one")
        self.fields[name], self.lines_of_fields[name] = value, number

    def _read_field(self, number: int, name: str, value: str) -> None:
        if name == "P":
            if "K" not in self.fields:
                raise self.error(number, "a section begins before the key", "end the header with K:")
            if value in self.parts:
                raise self.error(number, f"section {value} is written twice", "name it once and repeat it by %%order")
            self.part, self.position = value, Fraction(0)
            self.parts[value] = []
        elif name == "w":
            if self.part is None or not self.parts[self.part]:
                raise self.error(number, "lyrics without music above them", "put w: below its line of notes")
            self.parts[self.part][-1].verses.append((number, value))
        elif name not in INFORMATION_FIELDS:
            raise self.error(number, f"field {name}: is not read", f"use {' '.join(sorted(INFORMATION_FIELDS))} P w")
        elif "K" in self.fields:
            raise self.error(number, f"field {name}: stands after the key", "put it above K:")
        else:
            self._set(number, name, value)
            if name == "L":
                self.unit = 4 * self._fraction(number, value)
            if name == "K":
                self.key_accidentals = self._key(number, value)

    def _fraction(self, number: int, value: str) -> Fraction:
        try:
            return Fraction(value)
        except (ValueError, ZeroDivisionError):
            raise self.error(number, f"{value!r} is not a fraction", "write one such as 1/8") from None

    def _key(self, number: int, value: str) -> dict[str, int]:
        match = re.fullmatch(r"([A-G][b#]?)\s*([A-Za-z]*)", value)
        mode = match and ("m" if match[2].lower() == "m" else match[2].lower()[:3])
        sharps = None
        if match and mode in SHARPS_OF_MODE:
            tonic = SHARPS_OF_MAJOR.get(match[1], 6 if match[1] == "F#" else 7 if match[1] == "C#" else None)
            sharps = None if tonic is None else tonic + SHARPS_OF_MODE[mode]
        if sharps is None or not -7 <= sharps <= 7:
            raise self.error(number, f"key {value!r} is not known", "write one such as K:G or K:Edor")
        order = "FCGDAEB" if sharps > 0 else "BEADGCF"
        return dict.fromkeys(order[: abs(sharps)], 1 if sharps > 0 else -1)

    def _read_music(self, number: int, text: str) -> None:
        if self.part is None:
            raise self.error(number, "music before the first section", "write P:verse (or another label) above it")
        line = _MusicLine(number)
        in_bar: dict[str, int] = {}
        column, factor, triplet_left = 0, Fraction(1), 0
        while column < len(text):
            token = TOKEN.match(text, column)
            if not token:
                mend = "write repeats by %%order; graces, chords of notes and ornaments are not read"
                raise self.error(number, f"column {column + 1}: can't read {text[column : column + 6]!r}", mend)
            column = token.end()
            if token["chord"] is not None:
                line.chords.append(ChordSymbol(self.position, token["chord"], number))
            elif token["bar"]:
                line.bars.append((token["bar"], self.position))
                in_bar.clear()
            elif token["tuplet"]:
                triplet_left = 3
            elif token["tie"]:
                if not line.notes or line.notes[-1].pitch is None:
                    raise self.error(number, f"column {column}: a tie after no note", "remove the '-'")
            elif token["broken"]:
                factor = self._break_rhythm(number, line, token["broken"])
            elif token["name"]:
                duration = self._duration(number, token) * factor * (Fraction(2, 3) if triplet_left else 1)
                factor, triplet_left = Fraction(1), max(0, triplet_left - 1)
                line.notes.append(Note(self.position, duration, self._pitch(token, in_bar), number))
                self.position += duration
        self.parts[self.part].append(line)
        self.part_lengths[self.part] = self.position

    def _break_rhythm(self, number: int, line: _MusicLine, sign: str) -> Fraction:
        """``a>b`` lengthens a by half and halves b: mends the note before, returns the factor of the one after."""
        if not line.notes:
            raise self.error(number, f"{sign!r} stands before the first note", "put it between two notes")
        before, after = (Fraction(3, 2), Fraction(1, 2)) if sign == ">" else (Fraction(1, 2), Fraction(3, 2))
        last = line.notes[-1]
        line.notes[-1] = replace(last, duration=last.duration * before)
        self.position = line.notes[-1].start + line.notes[-1].duration
        return after

    def _duration(self, number: int, token: re.Match) -> Fraction:
        slashes = len(token["slash"])
        if token["below"] and (slashes != 1 or int(token["below"]) == 0):
            raise self.error(number, f"note length {token[0]!r} is not readable", "write one such as G3/2")
        divisor = int(token["below"]) if token["below"] else 2**slashes
        return self.unit * Fraction(int(token["above"] or 1), divisor)

    def _pitch(self, token: re.Match, in_bar: dict[str, int]) -> int | None:
        if token["name"] == "z":
            return None
        name = token["name"].upper()
        octave = (5 if token["name"].islower() else 4) + token["octave"].count("'") - token["octave"].count(",")
        place = f"{name}{octave}"
        if token["accidental"]:
            in_bar[place] = {"^": 1, "^^": 2, "_": -1, "__": -2, "=": 0}[token["accidental"]]
        return 12 * (octave + 1) + SEMITONES[name] + in_bar.get(place, self.key_accidentals.get(name, 0))

    def song(self) -> AbcSong:
        """Puts the sections in order and checks bars, chords and syllables."""
        for name, example in (
            ("T", "T:Oh! Susanna"), ("C", "C:Stephen Foster (1826-1864)"), ("S", "S:first printed 1848"),
            ("M", "M:4/4"), ("L", "L:1/8"), ("Q", "Q:1/4=100"), ("K", "K:G"),
            ("language", "%%language en"), ("genre", "%%genre folk"), ("voice", "%%voice female bright"),
            ("instruments", "%%instruments acoustic guitar, bass"), ("order", "%%order verse chorus"),
        ):  # fmt: skip
            if not self.fields.get(name):
                raise self.error(
                    None, f"has no {example.split(':')[0].split(' ')[0]} line", f"add one such as {example}"
                )
        meter = re.fullmatch(r"(\d+)/(\d+)", self.fields["M"])
        tempo = re.fullmatch(r"(\d+/\d+)=(\d+(?:\.\d+)?)", self.fields["Q"])
        if not meter or not tempo:
            name, example = ("M", "M:4/4") if not meter else ("Q", "Q:1/4=100")
            raise self.error(
                self.lines_of_fields[name], f"{self.fields[name]!r} can't be read", f"write it as {example}"
            )
        sections, chords, length, pickup = self._in_order(Fraction(4 * int(meter[1]), int(meter[2])))
        return AbcSong(
            path=self.path,
            fields=self.fields,
            lines_of_fields=self.lines_of_fields,
            meter=(int(meter[1]), int(meter[2])),
            tempo=float(Fraction(tempo[1]) * 4) * float(tempo[2]),
            sections=tuple(sections),
            chords=tuple(chords),
            intro=tuple(re.findall(r'"([^"]+)"', self.fields.get("intro", ""))),
            pickup=pickup,
            length=length,
        )

    def _in_order(self, bar: Fraction) -> tuple[list[Section], list[ChordSymbol], Fraction, Fraction]:
        sections: list[Section] = []
        chords: list[ChordSymbol] = []
        start, bar_start, pickup, times_sung = Fraction(0), Fraction(0), None, {}
        for label in self.fields["order"].split():
            if label not in self.parts:
                mend = f"write P:{label} or choose from {', '.join(self.parts) or 'no section at all'}"
                raise self.error(self.lines_of_fields["order"], f"section {label} is not there", mend)
            verse = times_sung.setdefault(label, 0)
            times_sung[label] += 1
            verses = max((len(music.verses) for music in self.parts[label]), default=0)
            lines = []
            for music in self.parts[label]:
                for sign, at in music.bars:
                    filled = start + at - bar_start
                    if pickup is None and filled:
                        pickup = Fraction(0) if filled == bar else filled
                    elif filled != bar and (sign == "|" or filled > bar):
                        what = f"a bar of {float(filled):g} quarter notes in a meter with {float(bar):g}"
                        raise self.error(music.number, what, "mend the note lengths or the bar lines")
                    elif filled != bar:
                        continue
                    bar_start = start + at
                chords += [replace(chord, start=start + chord.start) for chord in music.chords]
                line = self._sung_line(music, verse, start, verses)
                lines += [line] if line else []
            sections.append(Section(label.rstrip("0123456789"), start, tuple(lines)))
            start += self.part_lengths.get(label, Fraction(0))
        if not chords:
            raise self.error(None, "has no chord symbols", 'write them before the notes: "G"d d')
        return sections, chords, start, pickup or Fraction(0)

    def _sung_line(self, music: _MusicLine, verse: int, start: Fraction, verses: int) -> Line | None:
        """The lyrics of one music line, note by note; None for a line of rests."""
        notes = [replace(note, start=start + note.start) for note in music.notes if note.pitch is not None]
        if not notes and not music.verses:
            return None
        if not music.verses or len(music.verses) != verses:
            what = f"{len(music.verses)} lines of lyrics below a line of notes in a section with {verses}"
            raise self.error(music.number, what, "write one w: line a verse below each line of notes")
        number, text = music.verses[min(verse, verses - 1)]
        groups = _syllables_of(text)
        wanted = sum(slots for _, _, _, slots in groups)
        if wanted != len(notes):
            what = f"{wanted} syllables under {len(notes)} notes ({' '.join(text.split())!r})"
            raise self.error(number, what, "one syllable, '_' or '*' for every note")
        syllables, first = [], 0
        for word, index, count, slots in groups:
            if word:
                syllables.append(Syllable(word, index, count, tuple(_joined(notes[first : first + slots]))))
            first += slots
        return Line(_plain_text(text), tuple(syllables))


def _syllables_of(text: str) -> list[tuple[str, int, int, int]]:
    """(word, index of the syllable in it, syllables in the word, notes taken); an empty word is a note without text.

    The word keeps a hyphen between its syllables, so that a pronunciation can use the writer's own division.
    """
    words: list[list[list]] = []  # a word is a list of [letters, notes taken]
    joined = False  # a hyphen was read: the next letters belong to the word before
    for token in re.findall(r"[*_-]|[^\s*_-]+", text.replace("|", " ").replace("\\-", HYPHEN)):
        if token == "-":
            joined = bool(words)
        elif token == "_" and words:
            words[-1][-1][1] += 1
        elif joined:
            words[-1].append([token, 1])
            joined = False
        else:
            words.append([["" if token in "*_" else token, 1]])
    groups = []
    for word in words:
        whole = "-".join(letters for letters, _ in word)
        groups += [(whole, index, len(word), slots) for index, (_, slots) in enumerate(word)]
    return groups


def _joined(notes: list[Note]) -> list[Note]:
    """Notes of one syllable with ties and repeated pitches as one note."""
    joined = [notes[0]]
    for note in notes[1:]:
        if note.pitch == joined[-1].pitch and note.start == joined[-1].start + joined[-1].duration:
            joined[-1] = replace(joined[-1], duration=joined[-1].duration + note.duration)
        else:
            joined.append(note)
    return joined


def _plain_text(text: str) -> str:
    """A ``w:`` line as one reads it: hyphens and holds gone, words and punctuation as they are."""
    text = re.sub(r"[|*_]", " ", text.replace("\\-", HYPHEN))
    text = re.sub(r"\s*-\s*", "", text)
    return re.sub(r"\s+", " ", text).strip().replace("~", " ").replace(HYPHEN, "-")

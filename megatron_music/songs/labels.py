"""Labels of sections: which words are one, and what is left of them for a model to read.

Anything alone in brackets is a label, whatever the language. A list of names, in the languages of most lyrics, decides
where it might be something else: with words behind it, with a colon in it, in parentheses or without brackets.
"""

import re
import unicodedata

_NAMES = frozenset(
    unicodedata.normalize("NFKC", name.strip())
    for name in """
    intro, verse, stanza, pre-chorus, pre chorus, prechorus, chorus, post-chorus, post chorus, postchorus, refrain,
    hook, pre-hook, post-hook, bridge, middle, break, breakdown, build, buildup, drop, interlude, instrumental, inst,
    solo, coda, outro, vamp, rap, skit, spoken, ad-lib, ad-libs, adlib, prelude, postlude, opening, ending,
    strophe, vers, kehrvers, zwischenspiel, vorspiel, nachspiel, brücke, zwischenteil,
    couplet, pré-refrain, pre-refrain, post-refrain, pont, prélude,
    verso, estrofa, coro, pre-coro, precoro, estribillo, pre-estribillo, puente, interludio, introducción,
    refrão, pré-refrão, ponte, estrofe, strofa, ritornello, pre-ritornello, intermezzo,
    refrein, brug, tussenspel, refräng, brygga, stick, omkvæd, refreng, säkeistö, kertosäe,
    zwrotka, refren, przejście, sloka, refrén, verze, strofă, nakarat, kıta, bait, reff, điệp khúc,
    куплет, припев, предприпев, бридж, проигрыш, вступление, интро, аутро, соло, приспів, στροφή, ρεφρέν,
    פזמון, בית, لازمة, مقطع, मुखड़ा, अंतरा,
    aメロ, bメロ, cメロ, サビ, 大サビ, ラスサビ, 落ちサビ, イントロ, アウトロ, ヴァース, コーラス, ブリッジ,
    間奏, 前奏, 後奏, 主歌, 副歌, 前副歌, 预副歌, 導歌, 导歌, 间奏, 尾奏, 桥段, 橋段, 过渡, 過渡,
    说唱, 說唱, 念白, 独白, 獨白, 尾声, 尾聲,
    벌스, 후렴, 프리코러스, 코러스, 브릿지, 브리지, 훅, 간주, 인트로, 아웃트로, 절
    """.split(",")
)
_LONGEST = 100
"""No line without brackets that is longer is a label."""
_SINGER = re.compile(r"[:(|,;、]|\s[-–—]|[–—]\s|\s(?:feat|ft|by)\b")
_COUNT = r"(?:[x×✕*]\s*\d{1,2}|\d{1,2}\s*[x×✕]|\d{1,2}\s*(?:times|mal|fois|veces|vezes|volte|次))"
_COUNT_IN_LABEL = re.compile(rf"(?:^|[\s(（])({_COUNT})(?=$|[\s)）:：])", re.IGNORECASE)
_REPEAT = re.compile(rf"{_COUNT}|(?:repeat(?:s|ed)?|rpt\.?|bis)(?:\s+(?:the\s+)?(.*))?", re.IGNORECASE)
_REPEAT_BEHIND = re.compile(r"\s*[(（]([^()（）]{0,60})[)）]$|(?:^|\s+)([x×✕]\s?\d{1,2}|\d{1,2}[x×✕])$", re.IGNORECASE)
_NUMBER_BEHIND = re.compile(r"[\s#.]*(?:\b(?:no|nr|n)[.°]?\s?)?#?\d+[a-z]?[\s.#]*$")
_NUMBER_WORD_BEHIND = re.compile(r"\s+(?:i{1,3}|iv|vi{0,3}|one|two|three|four|five|six)$|[一二三四五六]$")
_NUMBER_BEFORE = re.compile(
    r"^(?:\d{1,2}\s*(?:[.)]|st|nd|rd|th|er|ère|re|e|ème|[ªº°])?|first|second|third|fourth|第[一二三四五六\d])\s*"
)
_DECORATION = " \t\u3000#*_=~>-–—"
_KNOWN_TAGS = frozenset(
    "ti ar al au by re ve la lr tool length offset id # kana hash language encoding total sign qq version "
    "title artist album author editor creator lyricist composer".split()
)
_TAG = re.compile(r"\s*([^:：]*?)\s*[:：](.*)")
_TAG_KEY = re.compile(r"[a-z_#]+")


def plain_label(label: str) -> str:
    """``verse`` of ``Verse 2: Anna``: lower case, without number, singer and repeat count."""
    text = " ".join(unicodedata.normalize("NFKC", label).lower().split()).lstrip(_DECORATION)
    return _without_number(_SINGER.split(text)[0])


def is_section_name(text: str) -> bool:
    """Whether a text is surely a label: a known name, or a word and one (``final chorus``)."""
    first, _, last = plain_label(text).partition(" ")
    return f"{first} {last}".strip() in _NAMES or last in _NAMES


def label_without_brackets(line: str) -> str | None:
    """The label that a line without brackets is: ``(Chorus)``, ``Chorus:``, ``Verse 1``, ``## Bridge``; else None."""
    if len(line) > _LONGEST:
        return None
    bare = line.strip(_DECORATION)
    inner = bare.rstrip(":：").rstrip()
    if re.fullmatch(r"[(（][^()（）]*[)）]", inner):
        label = plain_label(inner[1:-1])
        return label if label in _NAMES else None
    is_marked = inner != bare or "--" in line or any(letter.isdigit() or letter in "#*_=" for letter in line)
    return _name_alone(inner.strip(_DECORATION)) if is_marked else None


def is_like_a_label(line: str) -> bool:
    """Whether a line that is no label reads like one: ``Chorus``, ``Verse 1: la le``, ``Chorus (Anna)``."""
    name = _SINGER.split(line.strip(_DECORATION + "{}<>[]/!"))[0].strip()
    return len(name) <= _LONGEST and _name_alone(name) is not None


def repeat_count(label: str) -> str | None:
    """``x2`` of ``Chorus x2``."""
    match = _COUNT_IN_LABEL.search(label)
    return match[1] if match else None


def is_repeat(text: str) -> bool:
    """Whether a text in brackets asks for something to be sung again: ``x2``, ``Repeat``, ``Repeat Chorus``."""
    match = _REPEAT.fullmatch(text.strip())
    if match is None:
        return False
    again = match[1]
    return not again or bool(re.fullmatch(_COUNT, again, re.IGNORECASE)) or is_section_name(again)


def split_repeat(line: str) -> tuple[str, str]:
    """A line and the repeat mark that it ends with: ``(x2)``, ``x2``, ``(Repeat)``."""
    match = _REPEAT_BEHIND.search(line)
    if match is None or not is_repeat(match[1] or match[2] or ""):
        return line, ""
    return line[: match.start()], match[0].strip()


def split_tag(content: str) -> tuple[str, str] | None:
    """Key, in lower case, and value of ``key: value``."""
    match = _TAG.fullmatch(content)
    return (match[1].lower(), match[2].strip()) if match else None


def is_known_tag(key: str) -> bool:
    """Whether LRC files have this key in their header."""
    return key in _KNOWN_TAGS


def is_tag(content: str, at_head: bool) -> bool:
    """Whether ``key: value`` in brackets is a header's: at the head of a file, unless a number ends the key; below it
    where the key is a word in small letters."""
    match = _TAG.fullmatch(content)
    if match is None:
        return False
    return not match[1][-1:].isdigit() if at_head else bool(_TAG_KEY.fullmatch(match[1]))


def _without_number(label: str) -> str:
    """A label, in lower case, without number and repeat count."""
    plain = _COUNT_IN_LABEL.sub("", label).strip()
    plain = _NUMBER_BEHIND.sub("", plain).strip(_DECORATION + ".#")
    # Words and numbers in front are part of a name that is not known: "part one", "8 bars".
    for number in (_NUMBER_WORD_BEHIND, _NUMBER_BEFORE):
        shorter = number.sub("", plain).strip()
        plain = shorter if shorter in _NAMES else plain
    return plain


def _name_alone(text: str) -> str | None:
    """The known name that a text is, with a number at most."""
    plain = _without_number(" ".join(unicodedata.normalize("NFKC", text).lower().split()))
    return plain if plain in _NAMES else None

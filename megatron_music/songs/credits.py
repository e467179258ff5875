"""Lines of lyrics that name who made the song: nobody sings them.

A credit is a role, or several, then ``by`` or a colon, then a name. A name in small Latin letters is in doubt behind
``by`` and behind a player's role ("written by the moonlight", "bass: la la la"): such a line is sung.
"""

import re

_AUTHORS = (
    r"lyrics?|words|text|music|song|written|writers?|composed|composers?|composition|lyricists?|songwriters?|authors?|"
    r"arranged|arrangers?|arrangements?|produced|producers?|production|translated|translation|lrc|"
    r"worte?|musik|komponist|paroles|musique|auteurs?|compositeurs?|letra|música|autore?s?|compositore?s?|testo|"
    r"musica|слова|музыка|автор|작사|작곡|편곡"
)
_PLAYERS = (
    r"performed|performers?|recorded|recording|mix|mixed|mixing|mixer|mastered|mastering|engineered|engineers?|programming|"
    r"vocals?|guitars?|bass|drums?|percussion|piano|keyboards?|strings|violins?|publishers?|published|label|studio|op|sp"
)
_KINDS = r"executive|vocal|mixing|recording|mastering|music|additional|background|backing|lead|electric|acoustic|co"
_ROLE = rf"(?:(?:{_KINDS})[\s-]+)*(?:{_AUTHORS}|{_PLAYERS})"
_AND = r"\s*(?:\band\b|\bund\b|\bet\b|\by\b|[/／&,、+])\s*"
_AUTHOR_LINE = re.compile(rf"(?:{_ROLE}{_AND})*(?:{_AUTHORS})\s*(?:\bby\s*)?[:：].*", re.IGNORECASE)
_LINE = re.compile(rf"(?:{_ROLE}{_AND})*{_ROLE}\s*(?:\bby\b\s*[:：]?|[:：])(?P<name>.*)", re.IGNORECASE)
_ROLE_ZH = (
    r"[词詞曲歌唄鼓]|\w*?(?:[作填原][词詞曲]|作者|[编編][曲写寫]|[制製]作|[监監][制製]|[录錄]音|混音|母[带帶]|[和合][声聲]|吉他|"
    r"[贝貝]斯|弦[乐樂]|[键鍵][盘盤]|[钢鋼]琴|企[划劃]|[统統][筹籌]|[发發]行|出品|版[权權]|封面|推[广廣]|宣[传傳]|[营營][销銷]|"
    r"[总總][监監]|演唱|[原翻]唱|歌手|唱片|工作室)\w*"
)
_GAP_ZH = r"[\s/／&、.,，+]+"
_LINE_ZH = re.compile(rf"(?=[^:：]{{1,16}}[:：])(?:\w+{_GAP_ZH})*(?:{_ROLE_ZH})(?:{_GAP_ZH}\w+)*\s*[:：].*")
_LONGEST = 1000
_NOTICE = re.compile(r".*(?:纯音乐.{0,2}请.{0,3}欣赏|没有填词的纯音乐|暂无歌词).*")
"""What services write in place of lyrics."""
_NETEASE = re.compile(r'\{"t":\s*-?\d+,\s*"c":.*\}')
"""How one service writes the credits at the head of an LRC file."""


def is_credit(line: str) -> bool:
    """Whether a line is a credit beyond doubt."""
    line = line.strip()
    if len(line) > _LONGEST:
        return False
    surely = any(form.fullmatch(line) for form in (_AUTHOR_LINE, _LINE_ZH, _NETEASE, _NOTICE))
    name = _name(line)
    return surely or bool(name) and not name[0].islower()


def is_like_a_credit(line: str) -> bool:
    """Whether a line may be a credit, or sung."""
    line = line.strip()
    return len(line) <= _LONGEST and bool(_name(line)) and not is_credit(line)


def _name(line: str) -> str:
    """The name behind a role; empty where there is no role, or no name."""
    match = _LINE.fullmatch(line)
    return match["name"].strip() if match else ""

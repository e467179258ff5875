"""Lines that name who made a song."""

import pytest

from megatron_music.songs.credits import is_credit, is_like_a_credit


@pytest.mark.parametrize(
    "line",
    [
        "Lyrics by Anna",
        "lyrics: anna",
        "Written by: anna",
        "Words and Music by A. Nonymous",
        "Lyrics & Music : Anna / Tom",
        "Executive Producer: Tom",
        "Background Vocals : Anna",
        "Mixing Engineer：Tom",
        "Composed By Tom",
        "作词 : 李四",
        "作曲：李四",
        "词：某某",
        "词/曲：李四",
        "和声编写 : 张三",
        "Producer/制作人：X",
        "联合出品 : A/B",
        "OP：A Publisher",
        "作詞：テスト",
        "歌：初音",
        "작사: 김",
        "Text und Musik: Anna",
        "Paroles et musique : Anna",
        "Letra: Ana",
        "Слова: Анна",
        "纯音乐，请欣赏",
        "此歌曲为没有填词的纯音乐，请您欣赏",
        '{"t":0,"c":[{"tx":"作词: "},{"tx":"某人"}]}',
    ],
)
def test_credits(line):
    assert is_credit(line) and not is_like_a_credit(line)


@pytest.mark.parametrize("line", ["written by the moonlight", "music by the sea", "bass: la la la"])
def test_lines_in_doubt_are_none(line):
    assert is_like_a_credit(line) and not is_credit(line)


@pytest.mark.parametrize(
    "line",
    [
        "Music, when soft voices die",
        "Words are all I have",
        "She said: go",
        "Two by two",
        "词不达意的夜",
        "这首歌：啦",
        "男：啦",
        "Music by",
        "",
    ],
)
def test_sung_lines(line):
    assert not is_credit(line) and not is_like_a_credit(line)

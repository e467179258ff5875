"""The report of an evaluation: tables that parse back, and a page that shows it all wherever its folder lies."""

import csv
import io
import json
import re

import numpy as np
import pytest
from chromium import PATIENCE_MS, chromium
from typer.testing import CliRunner

from megatron_music.audio.files import write_audio
from megatron_music.cli import app
from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import Interval
from megatron_music.evaluation.listening.statistics import Answer, correlate, summarise
from megatron_music.evaluation.report.plots import listener_radar, losses, score_radar, violin, win_matrix
from megatron_music.evaluation.report.tables import latex, latex_text, measure_rows, measures_csv, songs_csv
from megatron_music.evaluation.report.write import write_report
from megatron_music.evaluation.result import AUTOMATIC, Evaluation, Measure, Missing, SongResult, SystemResult

EVIL = r"A&B_50%$x$ <script>alert(1)</script> {\input} [a]~^#|"
MEASURES = {
    "vocal_range": Measure(title="vocal range", unit="semitones", better="higher", note="Of the separated vocal."),
    "word_error_rate": Measure(title="word error rate", unit="%", better="lower"),
    "loudness": Measure(title="loudness", unit="LUFS"),
    "key": Measure(title="key stability", better="higher"),
    "frechet": Measure(title="Frechet audio distance", better="lower"),
}
ASPECTS = ["overall", "musicality", "vocal quality"]


def made_system(folder, name, place, songs=6):
    chance = np.random.default_rng(place)
    made = []
    for n in range(songs):
        tone = np.sin(2 * np.pi * (220 + 30 * n + 100 * place) * np.arange(4000) / 8000).astype(np.float32) / 4
        write_audio(folder / f"{n}.mp3", tone, 8000)
        values = {"vocal_range": float(20 + 3 * place + n), "loudness": -14.5 - n, "key": float(chance.uniform())}
        values |= {"word_error_rate": float(chance.uniform(0, 60))} if n else {}
        problems = ["half of it is <b>silent</b>"] if n == 2 else []
        made.append(SongResult(name=f"song {n}", file=f"{n}.mp3", measures=values, problems=problems))
    distance = Interval(value=3.0 - place, low=2.5 - place, high=3.6 - place)
    model = {"losses": {"vocal": 3.5 - place, "text": 4.25}, "steps": 3} if place < 2 else {}
    return SystemResult(name=name, folder=str(folder), songs=made, measures={"frechet": distance}, model=model)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Evaluation:
    root = tmp_path_factory.mktemp("songs")
    systems = [made_system(root / str(place), name, place) for place, name in enumerate(("ours", EVIL))]
    broken = [SongResult(name="song 0", file="gone.wav"), SongResult(name="song 1", file="junk.wav"),
              SongResult(name="song 2", file="f0.txt", measures={"vocal_range": 12.0})]  # fmt: skip
    (root / "broken").mkdir()
    (root / "broken" / "junk.wav").write_text("junk")
    systems.append(SystemResult(name="broken", folder=str(root / "broken"), songs=broken))
    chance = np.random.default_rng(0)
    answers = [
        Answer(rater, "ours", f"song {n}", EVIL, f"song {n}", {a: int(chance.integers(-1, 2)) for a in ASPECTS})
        for rater in ("ann", "bob")
        for n in range(6)
    ]
    missing = Missing(measure="clap_score", why="no weights", how="name their folder with --clap")
    listening = summarise(answers, ["ours", EVIL], ASPECTS)
    return Evaluation(measures=MEASURES, systems=systems, missing=[missing], listening=listening)


def test_csv_parses_back_to_the_numbers(evaluation):
    rows = list(csv.DictReader(io.StringIO(measures_csv(evaluation), newline="")))
    by_name = {(row["measure"], row["system"]): row for row in rows}
    assert len(rows) == len(by_name) == 4 * 2 + 1 + 2
    for (name, system), row in by_name.items():
        made = evaluation.system(system)
        assert float(row["value"]) == made.value(name)
        quartiles = made.quartiles(name)
        if quartiles:
            assert (float(row["low"]), float(row["high"]), int(row["songs"])) == (
                quartiles.low, quartiles.high, quartiles.count)  # fmt: skip
    assert by_name["frechet", "ours"]["of"] == "system" and by_name["frechet", "ours"]["songs"] == ""
    assert ("frechet", "broken") not in by_name
    found = correlate(evaluation, "vocal_range", "overall")
    row = by_name["vocal_range", EVIL]
    assert (row["listeners_systems_count"], row["listeners_systems_pearson"]) == ("2", "")
    assert float(row["listeners_pairs_spearman"]) == found.pairs_spearman.value
    songs = list(csv.DictReader(io.StringIO(songs_csv(evaluation), newline="")))
    assert len(songs) == 15 and songs[2]["problems"] == "half of it is <b>silent</b>"
    assert songs[6]["system"] == EVIL and songs[6]["word_error_rate"] == "" and float(songs[6]["loudness"]) == -14.5


def unescaped(text):
    """What LaTeX would set, read back."""
    for command, sign in (("textasciitilde", "~"), ("textasciicircum", "^"), ("textless", "<"), ("textgreater", ">"),
                          ("textbar", "|")):  # fmt: skip
        text = text.replace(rf"\{command}{{}}", sign)
    text = text.replace(r"\textbackslash{}", "\0").replace("{[}", "[").replace("{]}", "]").replace("$-$", "-")
    return re.sub(r"\\([{}$&#_%])", r"\1", text).replace("\0", "\\")


def test_latex_escapes_all_that_would_be_a_command(evaluation):
    assert unescaped(latex_text(EVIL)) == EVIL
    assert latex_text('a\nb\x07"') == "a b ''"
    # With commands and escaped signs taken away, only braces that belong to commands and the table's own & are left.
    bare = re.sub(r"\\[&%$#_{}]", "", latex_text(EVIL))
    assert not re.search(r"[&%$#_~^]", bare) and bare.count("{") == bare.count("}")


def test_latex_parses_back_to_the_table(evaluation):
    lines = latex(evaluation).splitlines()
    assert lines[0] == r"\begin{table}" and lines[-1] == r"\end{table}"
    rows = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines if line.endswith(r"\\")]
    assert [len(row) for row in rows] == [5] * 6
    assert [unescaped(cell) for cell in rows[0]] == ["", "ours", EVIL, "broken", "listeners"]
    table = {row.name: row for row in measure_rows(evaluation)}
    assert [unescaped(cell) for cell in rows[1][:2]] == [r"vocal range (semitones) $\uparrow$", "22.5 [21.2, 23.8]"]
    assert unescaped(rows[1][2]) == rf"\textbf{{{table['vocal_range'].cells[EVIL].words}}}"
    assert rows[3][1].startswith("$-$17 ") and rows[5][3] == "--"
    assert latex_text(AUTOMATIC) in lines[-2]


def test_the_best_is_the_higher_or_the_lower(evaluation):
    best = {row.name: [system for system, cell in row.cells.items() if cell.best] for row in measure_rows(evaluation)}
    assert best["vocal_range"] == [EVIL] and best["frechet"] == [EVIL] and best["loudness"] == []
    alike = [SystemResult(name=name, measures={"frechet": 2.0}) for name in "xy"]
    (row,) = measure_rows(Evaluation(measures=MEASURES, systems=alike))
    assert not any(cell.best for cell in row.cells.values())


def test_plots_tell_their_numbers_in_words(evaluation):
    told = violin(evaluation, "vocal_range").alt
    assert "vocal range (semitones)" in told
    assert "ours: median 22.5, quartiles 21.2 and 23.8, 6 songs" in told
    assert "broken: median 12, quartiles 12 and 12, 1 song." in told
    assert "ours: vocal 3.50, text 4.25" in losses(evaluation).alt and EVIL in losses(evaluation).alt
    (rate,) = [one.rate for one in evaluation.listening.win_rates["musicality"] if one.system == "ours"]
    assert f"against {EVIL} {rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%})" in win_matrix(
        evaluation.listening, "musicality").alt  # fmt: skip
    assert f"vocal quality {evaluation.listening.scores['vocal quality']['ours']:.2f}" in listener_radar(
        evaluation.listening).alt  # fmt: skip
    # Of the 6 x 6 + 6 comparisons of ours, 15 + 6 + ties half: three semitones lie between songs of one number.
    wins = sum((a > b) + (a == b) / 2 for a in range(20, 26) for b in [*range(23, 29), 12])
    assert f"ours: vocal range {wins / 42:.2f}" in score_radar(evaluation).alt
    alone = Evaluation(measures=MEASURES, systems=evaluation.systems[:1])
    assert score_radar(alone) is None and win_matrix(evaluation.listening, "else") is None


@pytest.fixture(scope="module")
def moved(evaluation, tmp_path_factory):
    """A report that was written, and then moved elsewhere."""
    root = tmp_path_factory.mktemp("moved")
    evaluation.write(root / "written" / "evaluation.json")
    done = CliRunner().invoke(
        app, ["evaluate", "report", str(root / "written"), "--out", str(root / "report"), "--players", "4"]
    )
    assert done.exit_code == 0 and done.output.strip().endswith("report.html")
    return (root / "report").rename(root / "other place")


def test_the_folder_holds_the_one_json_again(moved, evaluation):
    assert Evaluation.read(moved) == evaluation
    assert (moved / "measures.csv").read_bytes().decode() == measures_csv(evaluation)
    assert (moved / "measures.tex").read_text() == latex(evaluation)
    names = {path.name for path in moved.iterdir()}
    assert names == {"report.html", "evaluation.json", "measures.csv", "songs.csv", "measures.tex", "songs"}


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_the_page_shows_plots_players_and_tables(moved, evaluation, width, scheme):
    with chromium() as browser:
        page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
        page.set_default_timeout(PATIENCE_MS)
        asked, said, dialogs = [], [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto((moved / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        images = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth > 50, i.alt])")
        # A violin each of vocal range, word error rate, loudness and key, three matrices, two radars, the losses.
        assert len(images) == 10 and all(complete and wide and alt for complete, wide, alt in images)
        heading, *rows = page.evaluate("[...document.querySelectorAll('#measures-table tr')]"
                                       ".map(r => [...r.cells].map(c => c.innerText.trim()))")  # fmt: skip
        assert heading == ["measure", "ours", EVIL, "broken", "with listeners (overall)"]
        assert rows[0][:2] == ["vocal range (semitones) ↑", "22.5 [21.2, 23.8]\n6 songs"]
        assert rows[0][4].startswith("systems: too few, n = 2\npairs: ") and rows[0][4].endswith(
            "n = 6, too few to rely on")  # fmt: skip
        assert AUTOMATIC in page.inner_text("#measures ~ .warning")
        lengths = page.evaluate(PLAY_ALL)
        assert len(lengths) == 8 and all(abs(length - 0.5) < 0.2 for length in lengths)
        songs = page.inner_text("#songs-table")
        assert "gone.wav is not there any more" in songs and "no audio in junk.wav" in songs and "no audio" in songs
        assert "half of it is <b>silent</b>" in page.inner_text("#problems-table")
        assert "name their folder with --clap" in page.inner_text("#missing-table")
        assert json.loads(page.text_content("#models ~ details pre")) == evaluation.systems[0].model
        assert dialogs == [] and said == []
        assert all(url.startswith(("data:image/svg+xml;base64,", moved.as_uri())) for url in asked)


PLAY_ALL = """async () => Promise.all([...document.querySelectorAll("audio")].map(async audio => {
    audio.muted = true;
    await audio.play();
    return audio.duration;
}))"""


def test_what_can_not_be_reported_is_one_line(evaluation, tmp_path):
    with pytest.raises(InputError, match="there are no systems to report"):
        write_report(Evaluation(), tmp_path / "report")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("all of it")
    with pytest.raises(InputError, match="thesis: exists and holds no report.html; name a new folder"):
        write_report(evaluation, tmp_path / "thesis")
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "chapter.txt"]


def test_a_report_is_written_again_over_itself_and_without_players(evaluation, tmp_path):
    alone = Evaluation(measures=MEASURES, systems=evaluation.systems[:1])
    write_report(evaluation, tmp_path / "report", players=1)
    page = write_report(alone, tmp_path / "report", players=0)
    assert not (tmp_path / "report" / "songs").exists() and "<audio" not in page.read_text()
    again = page.read_bytes()
    assert write_report(alone, tmp_path / "report", players=0).read_bytes() == again
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text())["listening"] is None
    other = summarise([Answer("ann", "theirs", "1", "yours", "1", {"overall": 1})], ["theirs", "yours"], ["overall"])
    strange = write_report(alone.model_copy(update={"listening": other}), tmp_path / "strange").read_text()
    assert "Listeners heard theirs, yours, of which no songs were measured here" in strange
    listening = Evaluation(listening=evaluation.listening)
    assert "systems: " not in write_report(listening, tmp_path / "heard").read_text()

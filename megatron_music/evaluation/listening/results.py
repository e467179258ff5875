"""What a listening test has found so far, for a terminal and as ``evaluation.json`` for the report."""

from pathlib import Path

from megatron_music.errors import InputError
from megatron_music.evaluation.listening.answers import answers_of, read_answers
from megatron_music.evaluation.listening.statistics import summarise
from megatron_music.evaluation.listening.study import ANSWERS, ASPECTS, Study
from megatron_music.evaluation.result import FILE, Evaluation, Listening
from megatron_music.tables import table

FEW_RATERS = 5


def write_results(folder: str | Path) -> Listening:
    """Reads a listening test and writes ``FOLDER/evaluation.json``; raises InputError where nobody has answered yet."""
    study, lines = Study.read(folder), read_answers(folder)
    if not lines:
        raise InputError(Path(folder) / ANSWERS, "holds no answers yet", "listen first: evaluate listen --out FOLDER")
    answers = answers_of(study, lines)
    asked = [aspect for aspect in ASPECTS if any(aspect in answer.preferences for answer in answers)]
    listening = summarise(answers, list(study.systems), asked)
    Evaluation(listening=listening).write(Path(folder) / FILE)
    return listening


def results_in_words(listening: Listening) -> str:
    """Win rates of every two systems by aspect, strengths and agreement."""
    parts = [f"{listening.answers} answers by {listening.raters} rater{'s' * (listening.raters != 1)}"]
    if listening.raters < FEW_RATERS:
        parts[0] += ": too few raters to say much about others"
    for aspect in listening.aspects:
        rows = [[aspect, "against", "won", "tied", "lost", "win rate", "95%"]]
        seen: set[frozenset[str]] = set()
        for one in listening.win_rates[aspect]:
            if frozenset((one.system, one.against)) not in seen:
                seen.add(frozenset((one.system, one.against)))
                numbers = [str(one.wins), str(one.ties), str(one.losses), f"{one.rate.value:.1%}"]
                rows.append([one.system, one.against, *numbers, f"{one.rate.low:.1%} to {one.rate.high:.1%}"])
        lines = [table(rows, left=2)]
        if aspect in listening.strengths:
            ordered = sorted(listening.strengths[aspect].items(), key=lambda item: -item[1])
            lines.append("strength  " + ", ".join(f"{name} {strength:+.2f}" for name, strength in ordered))
        alpha = listening.agreement.get(aspect)
        # Adding 0 takes the sign from a zero.
        known = "unknown: no pair was judged by two raters" if alpha is None else f"{round(alpha, 2) + 0.0:.2f}"
        lines.append(f"agreement {known}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)

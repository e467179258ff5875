"""What messages, help and documentation name is there: options of verbs, and files of the repository."""

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command

from megatron_music import cli

REPOSITORY = Path(__file__).parents[1]
TEXTS = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *(path for suffix in ("yaml", "sbatch", "j2") for path in sorted(REPOSITORY.glob(f"[!.]*/**/*.{suffix}"))),
]
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?![\w-])")
PATH = re.compile(r"(?<![\w/.-])(?:examples|docs|tokenizers|slurm|tools|tests)/[\w./-]*\w")
COMMAND = re.compile(r"megatron-music((?: [a-z]+){1,2})((?:[^\n`;|]|\\\n)*)")
OF_OTHER_PROGRAMS = {
    "docker": {"shm-size"},
    "git": {"porcelain"},
    "nvidia-smi": {"id", "query-gpu"},
    "Gradio's style sheet": {"block-background-fill"},
    "Megatron-LM": {"rampup-batch-size"},
    "pytest": {"durations"},
    "SLURM": {
        "batch", "container-image", "container-mounts", "dependency", "exclusive", "gpus-per-task", "job-name",
        "jobs", "kill-on-bad-exit", "mem", "name", "noheader", "ntasks-per-node", "open-mode", "output", "parsable",
        "requeue", "signal",
    },
    "TensorBoard": {"logdir"},
    "torchrun": {"max-restarts", "nproc-per-node"},
    "YuE": {
        "append-eod", "codec-type", "cot", "input", "instruction", "n-quantizer", "order", "output-prefix",
        "quantizer-begin", "tokenizer-model", "tokenizer-type", "use-token-level-interleave",
    },
}  # fmt: skip


def options_of(command, words=()):
    """Options by the words of each verb; those that stand before a verb have none."""
    found = {words: {name[2:] for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]
                     if name.startswith("--")} | {"help"}}  # fmt: skip
    for name, inner in getattr(command, "commands", {}).items():
        found |= options_of(inner, (*words, name))
    return found


OPTIONS = options_of(get_command(cli.app))
OF_TOOLS = {
    name for path in (REPOSITORY / "tools").glob("*.py") for name in re.findall('"--([a-z-]+)"', path.read_text())
}
KNOWN = OF_TOOLS.union(*OPTIONS.values(), *OF_OTHER_PROGRAMS.values())


def words_of(path):
    """A document; of Python, its texts: messages, help and docstrings, f-strings with their values left out."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    constants = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    return "\n".join(node.value for node in constants if isinstance(node.value, str))


@pytest.fixture(scope="module")
def texts():
    package = sorted((REPOSITORY / "megatron_music").rglob("*.py"))
    return {path.relative_to(REPOSITORY): words_of(path) for path in [*TEXTS, *package]}


def test_every_option_that_is_named_is_one_of_a_verb(texts):
    unknown = {str(path): set(OPTION.findall(text)) - KNOWN for path, text in texts.items()}
    assert {path: names for path, names in unknown.items() if names} == {}


def test_every_command_that_is_shown_has_its_options(texts):
    wrong, seen = [], 0
    for path, text in texts.items():
        for verbs, rest in COMMAND.findall(text):
            words = tuple(verbs.split())
            verb = next((words[:length] for length in (2, 1) if words[:length] in OPTIONS), None)
            if verb is None:
                continue
            seen += 1
            wrong += [(str(path), " ".join(verb), name) for name in OPTION.findall(rest) if name not in OPTIONS[verb]]
    assert wrong == [] and seen > 60


def test_every_file_that_is_named_is_there(texts):
    missing = {(str(path), name) for path, text in texts.items() for name in PATH.findall(text)
               if not (REPOSITORY / name).exists()}  # fmt: skip
    assert missing == set()

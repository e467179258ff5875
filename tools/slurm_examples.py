"""Writes the sbatch files in ``slurm/`` that show what ``submit`` makes of the template; run it when that changes."""

from pathlib import Path

from megatron_music.cluster.submit import ROOT, Job, render
from megatron_music.files import write_text
from megatron_music.recipe.recipe import Recipe

EXAMPLES = {2: ("yue_0.5b", 8), 12: ("yue_2b", 40), 64: ("yue_7b", 72)}
"""Nodes of 8 GPUs, the recipe for them and hours."""


def examples() -> dict[Path, str]:
    """Each file and its content."""
    shared = Path("/shared")
    files = {}
    for nodes, (name, hours) in EXAMPLES.items():
        path = ROOT / "slurm" / f"train_{nodes}_nodes.sbatch"
        recipe = Recipe.load(ROOT / "examples" / f"{name}.yaml")
        recipe = recipe.model_copy(update={"run": shared / "runs" / name, "corpus": shared / "corpus"})
        environment = "source .venv/bin/activate"
        job = Job(nodes, sbatch={"partition": "gpu", "time": f"{hours}:00:00"}, environment=environment)
        notes = [
            "An example, from slurm/train.sbatch.j2 by tools/slurm_examples.py; your own comes from",
            f"megatron-music submit examples/{name}.yaml --nodes {nodes} --partition gpu --time {hours}:00:00 "
            f"--environment '{environment}'",
        ]
        folder = recipe.run / "submitted"
        files[path] = render(recipe, job, folder, f"examples/{name}.yaml", notes, f"{shared}/megatron-music")
    return files


if __name__ == "__main__":
    for path, text in examples().items():
        write_text(path, text)
        print(path)

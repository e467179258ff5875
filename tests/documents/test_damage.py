import json
import random

import numpy as np

from megatron_music.documents.tasks import TASKS
from megatron_music.songs.manifest import read_manifest, write_manifest
from megatron_music.songs.song import Reject, Rejected

ODD_VALUES = [
    None,
    -1,
    0,
    3.5,
    10**30,
    float("inf"),
    float("nan"),
    "",
    "text",
    "\ud800",
    [],
    {},
    [None],
    {"a": 1},
    True,
]


def _damage_value(rng: random.Random, content) -> None:
    """Replaces or removes one value somewhere in the nested content."""
    while True:
        key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
        if isinstance(content[key], dict | list) and content[key] and rng.random() < 0.7:
            content = content[key]
            continue
        if isinstance(content, dict) and rng.random() < 0.2:
            del content[key]
        else:
            content[key] = rng.choice(ODD_VALUES)
        return


def test_damaged_manifests_end_in_documents_or_in_rejects(songs, context, tmp_path):
    """Whatever a line says, it becomes documents of valid ids, or a reject; never another exception."""
    song = songs.song(frames=2200, structure=[{"start": 0.0, "end": 40.0, "label": "chorus"}])
    write_manifest(tmp_path / "whole.jsonl", [song])
    whole = (tmp_path / "whole.jsonl").read_bytes()
    rng = random.Random(0)
    made = rejected = 0
    for _ in range(400):
        if rng.random() < 0.7:
            content = json.loads(whole)
            _damage_value(rng, content)
            line = json.dumps(content).encode()
        else:
            damaged = bytearray(whole)
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            line = bytes(damaged)
        (tmp_path / "damaged.jsonl").write_bytes(line + b"\n")
        for read in read_manifest(tmp_path / "damaged.jsonl"):
            if isinstance(read, Reject):
                rejected += 1
                continue
            for task in TASKS.values():
                try:
                    documents = task.documents(read, context, np.random.default_rng(0), task.options())
                except Rejected:
                    rejected += 1
                    continue
                for document in documents:
                    made += 1
                    assert len(document.ids) == len(document.kinds)
                    assert 0 <= document.ids.min() and document.ids.max() < context.vocabulary.size
    assert made > 300 and rejected > 300

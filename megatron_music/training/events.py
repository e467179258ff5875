"""Names in ``metrics.jsonl`` that other rooms read; nothing heavy is imported, so that `status` is there at once."""

METRICS = "metrics.jsonl"
"""The file, in a run's folder."""
ENDED, STOPPED = "ended", "stopped"
"""The events with which it closes: the recipe's last step is done, or the run was asked to stop before."""
ROLLED_BACK = "rolled_back"
"""The event of a rollback."""

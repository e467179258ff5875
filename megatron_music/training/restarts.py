"""Starting a run again that lost a process, hung or failed, for as long as that gets it on."""

from collections.abc import Callable

from megatron_music.exits import Hung, Lost
from megatron_music.progress import console
from megatron_music.training.run_folder import RunFolder


def run_again(run: Callable[[], None], folder: RunFolder, restarts: int) -> None:
    """Calls ``run`` until it ends well; it goes on from the last checkpoint by itself.

    Raises:
        Hung, Lost: what it ended with after ``restarts`` restarts in a row without a new checkpoint between them.
        RuntimeError: the same fault came twice in a row without a new checkpoint, or the restarts are used up. A fault
            of the machine passes, one of the program comes again.
        Exception: anything else that ``run`` raises, at once: bad input, and a run that was told to stop.
    """
    tried, before, last_fault = 0, _last_step(folder), None
    while True:
        try:
            return run()
        except (Hung, Lost, RuntimeError) as error:
            step, fault = _last_step(folder), str(error).splitlines()[-1]
            if step > before:
                tried, last_fault = 0, None
            repeats = fault == last_fault and not isinstance(error, Hung | Lost)
            if tried == restarts or repeats:
                raise
            tried, before, last_fault = tried + 1, step, fault
            console.print(f"{error}\nstarting again from step {step} (restart {tried} of {restarts} without progress)")


def _last_step(folder: RunFolder) -> int:
    newest = folder.newest_checkpoint()
    return 0 if newest is None else newest[1].step

"""The one exception that is meant for the user's eyes."""


class InputError(ValueError):
    """Bad input, told in one line: where it is, what is wrong, and what to do about it.

    The command line prints the line and exits with status 2; the traceback shows only with ``--debug``.

    Args:
        where: the file, and the field or line in it (``"recipe.yaml: phases[1].tokens"``).
        what: what is wrong with it, naming the value that was found.
        mend: what the user can do.
    """

    told_by_another = False
    """Whether it is the error of another process, which tells it."""

    def __init__(self, where: object, what: str, mend: str = ""):
        self.where, self.what, self.mend = str(where), what, mend
        line = f"{where}: {what}" + (f"; {mend}" if mend else "")
        super().__init__(" ".join(line.split()))

    def __reduce__(self):
        """Lets the error cross from a worker process."""
        return type(self), (self.where, self.what, self.mend)

"""The two ways a command can end badly; the command line turns them into exit codes 2 and 1."""


class RequestError(ValueError):
    """The request was wrong: one sentence that says what is wrong and what to do. Exit code 2."""


class WorkError(RuntimeError):
    """The request was right but the work failed, or the thing examined is unfit. Exit code 1."""

"""The two ways a command can end badly; the command line turns them into exit codes 2 and 1."""


class RequestError(ValueError):
    """The request was wrong: one sentence that says what is wrong and what to do. Exit code 2."""


class WorkError(RuntimeError):
    """The request was right but the work failed, or the thing examined is unfit. Exit code 1."""


class Preempted(WorkError):  # noqa: N818  # nothing went wrong
    """The work was told to leave its machine and left, with nothing lost: the same request goes on elsewhere."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped as told, behind a checkpoint at step {step}; run the same again and it goes on")
        self.step = step

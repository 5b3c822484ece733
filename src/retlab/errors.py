"""Errors that are the user's to mend, and the exit codes of every stage."""

EXIT_OK = 0
EXIT_USER_ERROR = 2
# EX_TEMPFAIL of sysexits.h: interrupted by a signal, everything saved, run again to continue.
EXIT_INTERRUPTED = 75


class UserError(Exception):
    """One sentence that says what is wrong, where, and what to do. Stages print it and exit with 2."""


class NotFinite(UserError):
    """A loss or a gradient is not finite: the training diverged.

    Args:
        what: what became not finite, and where; all there is to say where no checkpoint is kept.
        advice: what to do about it.
        step: the optimizer step.
        tokens: tokens trained on until then.
    """

    def __init__(self, what: str, advice: str, step: int, tokens: int) -> None:
        super().__init__(f"{what}; earlier checkpoints are kept: {advice}")
        self.what, self.step, self.tokens = what, step, tokens


class OutOfMemory(UserError):
    """Something does not fit the memory of a GPU or of the machine."""


class StorageFailed(UserError):
    """Files cannot be written or read, such as on a full disk: whatever writes there next fails as well."""


class Interrupted(BaseException):
    """SIGTERM, SIGUSR1 or Ctrl-C arrived and the work is saved. Stages exit with 75.

    No Exception, as KeyboardInterrupt is none: it may arrive anywhere, and nobody who handles errors may swallow it.
    """


def one_line(error: BaseException) -> str:
    """What an error says, where a sentence has room for it: some libraries' errors are paragraphs."""
    return " ".join(str(error).split())

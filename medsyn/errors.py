"""The exception for bad input, shown to the user as a single line (exit status 2)."""


class InputError(Exception):
    """Something the user gave is unusable.

    The message is one line that names the file or the subject, says what is wrong and what to do about it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class NothingFoundError(InputError):
    """A segmentation ran and found nothing: the structure is absent, as far as the tool can tell."""

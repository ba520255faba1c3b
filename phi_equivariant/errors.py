"""The one exception for input that cannot be used."""


class InputError(ValueError):
    """Input that cannot be used: the message names the argument, what came, what was expected and what to do.

    Command lines print it as one paragraph and exit with status 2.
    """

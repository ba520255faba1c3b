"""The exceptions for input that cannot be used."""


class InputError(ValueError):
    """Input that cannot be used: the message names the argument, what came, what was expected and what to do.

    Command lines print it as one paragraph and exit with status 2.
    """


class ConvergenceError(InputError):
    """Input for which an iteration did not converge: the message says what was asked, what was reached, what to do."""

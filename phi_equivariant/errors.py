"""The exceptions for input that cannot be used."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be used: the message names the argument, what came, what was expected and what to do.

    Command lines print it as one paragraph and exit with status 2.
    """


class ConvergenceError(InputError):
    """Input for which an iteration did not converge: the message says what was asked, what was reached, what to do."""


def did_you_mean(word: object, known: Iterable[str], otherwise: str = "", n: int = 2) -> str:
    """A question after the known names nearest to a word that is none of them, for messages.

    Parameters
    ----------
    word : what was given
    known : all names that are valid
    otherwise : what to say where none is near
    n : most names to ask after
    """
    near = difflib.get_close_matches(str(word), list(known), n=n, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else otherwise

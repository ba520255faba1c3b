"""What one solve leaves for the next, of almost the same system: its solution, and what it was preconditioned with."""

import dataclasses
from collections.abc import Callable

import torch

Map = Callable[[torch.Tensor], torch.Tensor]  # (n_atoms, width) → (n_atoms, width)

# Rows of a matrix that takes as long to make and factorise as one step of an iteration on a mesh does: the time of the
# one grows by one power of the rows, that of the other by three.
_ROWS = 540


@dataclasses.dataclass
class Made:
    """An approximate inverse, of so many rows, that was made for one system; ``fewest`` steps that a solve has taken
    with it, and how many more others have, all together."""

    apply: Map
    rows: int
    fewest: int | None = None
    more: int = 0


@dataclasses.dataclass
class Last:
    """What solves leave, and look for when atoms have moved a little."""

    solution: torch.Tensor | None = None  # (n_atoms, width)
    made: Made | None = None

    def start(self, otherwise: torch.Tensor) -> torch.Tensor:
        """The solution that was left, where it can be one of this system."""
        kept = self.solution
        if kept is None or (kept.shape, kept.dtype, kept.device) != (
            otherwise.shape,
            otherwise.dtype,
            otherwise.device,
        ):
            return otherwise
        return kept


class KeptInverse:
    """An approximate inverse M⁻¹ of A that takes longer to make than to use, kept while atoms move a little.

    One that was made for an earlier A is improved by a step of Newton's iteration with what is nearly A today,

        M⁻¹ → M⁻¹ (2 − A M⁻¹),   1 − M⁻¹A → (1 − M⁻¹A)²,

    and is made anew once the steps that it costs beyond those that it took at its best add up to those that making it
    takes: at once where that is less than half a step.

    Parameters
    ----------
    make: () → M⁻¹ of today's A; None where there is none
    product: nearly A
    otherwise: what to use where there is none
    rows: number of rows of A
    last: what an earlier solve left; None to keep nothing

    Source: G. Schulz, Z. angew. Math. Mech. 13, 57 (1933).
    """

    def __init__(
        self, make: Callable[[], Map | None], product: Map, otherwise: Map, rows: int, last: Last | None
    ) -> None:
        self._make, self._product, self._otherwise, self._last = make, product, otherwise, last
        self._rows, self._worth = rows, round((rows / _ROWS) ** 2)
        self._cold = last is None or last.solution is None
        kept = None if last is None else last.made
        self.is_old = kept is not None and kept.rows == rows and kept.more < self._worth
        self._made = kept if self.is_old else self._new()

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        """M⁻¹r."""
        if self._made is None:
            return self._otherwise(residual)
        found = self._made.apply(residual)
        return found + self._made.apply(residual - self._product(found)) if self.is_old else found

    @property
    def patience(self) -> int:
        """Steps of one solve with an old one before it is to be renewed."""
        return 1 if self._made is None else (self._made.fewest or 1) + self._worth - self._made.more

    def renew(self) -> None:
        """Make it for today's A."""
        self.is_old, self._made = False, self._new()

    def took(self, steps: int) -> None:
        """What a solve took; it is kept for the next, unless this one started from nothing and so took more."""
        made = self._made
        if made is not None:
            made.fewest = steps if made.fewest is None else min(steps, made.fewest)
            made.more += steps - made.fewest
        if self._last is not None:
            self._last.made = None if self._cold else made

    def _new(self) -> Made | None:
        apply = self._make()
        return None if apply is None else Made(apply, self._rows)

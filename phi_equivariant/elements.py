"""Pauling electronegativities of the elements, where the sign of learned charges comes from."""

from phi_equivariant.errors import InputError

# By atomic number from 1. Pauling scale (CRC Handbook of Chemistry and Physics, 97th edition); None where it has none.
_PAULING = (
    2.20, None, 0.98, 1.57, 2.04, 2.55, 3.04, 3.44, 3.98, None,
    0.93, 1.31, 1.61, 1.90, 2.19, 2.58, 3.16, None, 0.82, 1.00,
    1.36, 1.54, 1.63, 1.66, 1.55, 1.83, 1.88, 1.91, 1.90, 1.65,
    1.81, 2.01, 2.18, 2.55, 2.96, 3.00, 0.82, 0.95, 1.22, 1.33,
    1.60, 2.16, 1.90, 2.20, 2.28, 2.20, 1.93, 1.69, 1.78, 1.96,
    2.05, 2.10, 2.66, 2.60, 0.79, 0.89, 1.10, 1.12, 1.13, 1.14,
    1.13, 1.17, 1.20, 1.20, 1.10, 1.22, 1.23, 1.24, 1.25, 1.10,
    1.27, 1.30, 1.50, 2.36, 1.90, 2.20, 2.20, 2.28, 2.54, 2.00,
    1.62, 2.33, 2.02, 2.00, 2.20, None, 0.70, 0.90, 1.10, 1.30,
    1.50, 1.38, 1.36, 1.28, 1.30, 1.30, 1.30, 1.30, 1.30, 1.30,
    1.30, 1.30, 1.30,
)  # fmt: skip

# An element that shares no electrons neither gives nor takes any: helium, neon, argon and radon start uncharged, at
# the electronegativity of carbon, as does what the scale does not cover.
_NEUTRAL = 2.55


def electronegativity(atomic_number: int) -> float:
    """Pauling electronegativity χ of an element; carbon's where the scale has none.

    Raises
    ------
    InputError
        For a number that is not an element's.
    """
    if not 1 <= atomic_number <= 118:
        raise InputError(f"atomic number {atomic_number} is not an element's; expected 1 to 118.")
    value = _PAULING[atomic_number - 1] if atomic_number <= len(_PAULING) else None
    return _NEUTRAL if value is None else value

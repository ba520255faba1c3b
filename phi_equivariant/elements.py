"""What charge models start from, by element: electronegativity, hardness and polarisability of free atoms."""

from typing import TypeVar

from phi_equivariant.errors import InputError
from phi_equivariant.operators.coulomb import COULOMB_CONSTANT

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

# By atomic number from 1. (I − A)/2 in eV, from first ionisation energies (NIST Atomic Spectra Database) and electron
# affinities (CRC Handbook of Chemistry and Physics, 95th edition; 0 where the anion is not bound), in the definition of
# R. G. Parr and R. G. Pearson, J. Am. Chem. Soc. 105, 7512 (1983).
_HARDNESS = (
    6.42, 12.29, 2.39, 4.66, 4.01, 5.00, 7.27, 6.08, 7.01, 10.78,
    2.30, 3.82, 2.78, 3.38, 4.87, 4.14, 4.68, 7.88, 1.92, 3.04,
    3.19, 3.37, 3.11, 3.05, 3.72, 3.88, 3.61, 3.24, 3.25, 4.70,
    2.78, 3.33, 4.49, 3.87, 4.23, 7.00, 1.85, 2.82, 2.96, 3.10,
    2.92, 3.17, 3.28, 3.16, 3.16, 3.89, 3.14, 4.50, 2.74, 3.12,
    3.78, 3.52, 3.70, 6.06, 1.71, 2.53, 2.55, 2.44, 2.25, 1.80,
    2.79, 2.82, 2.40, 3.07, 2.35, 2.79, 3.01, 3.05, 2.58, 3.13,
    2.54, 3.41, 3.61, 3.52, 3.84, 3.67, 3.70, 3.42, 3.46, 5.22,
    2.87, 3.53, 3.17, 3.26, 3.26, 5.37, 1.79, 2.59, 2.52, 3.15,
    2.94, 3.10, 3.13, 3.01, 2.99, 3.00, 3.10, 3.14, 3.18, 3.25,
    3.29, 3.31, 2.48,
)  # fmt: skip

# Static dipole polarisabilities in atomic units: P. Schwerdtfeger and J. K. Nagle, Mol. Phys. 117, 1200 (2019) and its
# update of 2023.
_POLARISABILITY = (
    4.507, 1.384, 164.1, 37.74, 20.5, 11.3, 7.4, 5.3, 3.74, 2.661,
    162.7, 71.2, 57.8, 37.3, 25.0, 19.4, 14.6, 11.08, 289.7, 160.8,
    97.0, 87.0, 87.0, 83.0, 68.0, 62.0, 55.0, 49.0, 46.5, 38.67,
    50.0, 40.0, 30.0, 28.9, 21.0, 16.78, 319.8, 197.2, 162.0, 112.0,
    98.0, 87.0, 79.0, 72.0, 66.0, 26.14, 55.0, 46.0, 65.0, 53.0,
    43.0, 38.0, 32.9, 27.32, 400.9, 272.0, 215.0, 205.0, 216.0, 208.0,
    200.0, 192.0, 184.0, 158.0, 170.0, 163.0, 165.0, 150.0, 144.0, 139.0,
    137.0, 103.0, 74.0, 68.0, 62.0, 57.0, 54.0, 48.0, 36.0, 33.91,
    50.0, 47.0, 48.0, 44.0, 42.0, 35.0, 317.8, 246.0, 203.0, 217.0,
    154.0, 129.0, 151.0, 132.0, 131.0, 144.0, 125.0, 122.0, 118.0, 113.0,
    109.0, 110.0, 320.0,
)  # fmt: skip

_CUBIC_BOHR = 0.14818471  # Å³

T = TypeVar("T")


def electronegativity(atomic_number: int) -> float:
    """Pauling electronegativity χ of an element; carbon's where the scale has none.

    Raises
    ------
    InputError
        For a number that is not an element's.
    """
    value = _of((*_PAULING, *[None] * (118 - len(_PAULING))), atomic_number)
    return _NEUTRAL if value is None else value


def hardness(atomic_number: int) -> float:
    """Chemical hardness (I − A)/2 of a free atom in V/e; the heaviest that is known where it is not.

    Raises
    ------
    InputError
        For a number that is not an element's.
    """
    return _of(_HARDNESS, atomic_number)


def polarisability(atomic_number: int) -> float:
    """Static polarisability of a free atom in e·Å²/V; as ``hardness`` otherwise."""
    return _of(_POLARISABILITY, atomic_number) * _CUBIC_BOHR / COULOMB_CONSTANT


def _of(table: tuple[T, ...], atomic_number: int) -> T:
    if not 1 <= atomic_number <= 118:
        raise InputError(f"atomic number {atomic_number} is not an element's; expected 1 to 118.")
    return table[min(atomic_number, len(table)) - 1]

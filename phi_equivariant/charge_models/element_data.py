"""Hardness and polarisability of free atoms, from which those of a charge model start."""

from phi_equivariant.errors import InputError
from phi_equivariant.operators.coulomb import COULOMB_CONSTANT

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


def _of(table: tuple[float, ...], atomic_number: int) -> float:
    if not 1 <= atomic_number <= 118:
        raise InputError(f"atomic number {atomic_number} is not an element's; expected 1 to 118.")
    return table[min(atomic_number, len(table)) - 1]

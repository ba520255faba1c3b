"""LAMMPS' units, in eV and Å."""

import dataclasses

import ase.units

from phi_equivariant.errors import InputError


@dataclasses.dataclass(frozen=True)
class Units:
    """``energy``: LAMMPS' unit of energy in eV; lengths are in Å in both sets of units that are served."""

    name: str
    energy: float


_KNOWN = {"metal": 1.0, "real": ase.units.kcal / ase.units.mol}


def read_units(name: str) -> Units:
    """The units of an input by LAMMPS' name.

    Raises
    ------
    InputError
        For other units than metal and real.
    """
    if name not in _KNOWN:
        raise InputError(
            f"units is {name}; Φ computes in eV and Å: begin the input with the line 'units metal', or 'units real'."
        )
    return Units(name, _KNOWN[name])

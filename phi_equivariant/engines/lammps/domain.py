"""What one process of LAMMPS holds of the structure, and what is found for it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from phi_equivariant.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Domain:
    """Atoms of one process, and its copies of others.

    Parameters
    ----------
    positions: (n_own + n_ghosts, 3) in Å, those of the process first
    numbers: (n_own + n_ghosts,), atomic numbers; tags: likewise, LAMMPS' atom IDs
    n_own: number of the process' own atoms
    cell: (3, 3), rows are the cell vectors in Å; pbc: (3,)
    n_atoms: number of atoms that there should be on all processes
    """

    positions: Array
    numbers: Array
    tags: Array
    n_own: int
    cell: Array
    pbc: Array
    n_atoms: int

    def check_all_there(self, number: int) -> None:
        """InputError unless all processes together own as many atoms as there should be."""
        if number != self.n_atoms:
            raise InputError(
                f"atoms were lost: there were {self.n_atoms} and are {number} on all processes together. The "
                "simulation has probably blown up, or atoms left a box with fixed boundaries: look at the starting "
                "structure, the time step and 'boundary'."
            )

    @classmethod
    def read(cls, lammps: Any, elements: Sequence[int]) -> "Domain":
        """What LAMMPS holds now; elements are the atomic numbers of its types.

        Raises
        ------
        InputError
            For positions of own atoms that are not finite.
        """
        n_own = lammps.extract_setting("nlocal")
        n = n_own + lammps.extract_setting("nghost")
        names = ("x", "type", "id")
        if n == 0:  # there may be no arrays
            positions, types, tags = np.zeros((0, 3)), np.zeros(0, dtype=int), np.zeros(0, dtype=np.int64)
        else:
            positions, types, tags = (lammps.numpy.extract_atom(name)[:n].copy() for name in names)
        if not np.isfinite(positions).all():
            atom = int(tags[np.flatnonzero(~np.isfinite(positions).all(1))[0]])
            raise InputError(
                f"positions are not finite (NaN or infinity), that of atom {atom} among them; the simulation has "
                "probably blown up: look at the starting structure and the time step."
            )
        low, high, xy, yz, xz, periodic, _ = lammps.extract_box()
        lengths = np.subtract(high, low)
        cell = np.array([[lengths[0], 0, 0], [xy, lengths[1], 0], [xz, yz, lengths[2]]])
        return cls(
            positions=positions,
            numbers=np.asarray(elements)[types - 1],
            tags=tags.astype(np.int64),
            n_own=n_own,
            cell=cell,
            pbc=np.array(periodic, dtype=bool),
            n_atoms=int(lammps.get_natoms()),
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Energies of the whole structure, and forces and fields of the atoms of one process.

    Parameters
    ----------
    energy, host_energy, phi_energy: in eV; net_charge: Σρ before projection in e
    forces: (n_own, 3) in eV/Å
    virial: −∂E/∂ε, (3, 3) in eV, of the whole structure
    of_atoms: {property: (n_own,) or (n_own, 3)}: phi_charge in e, phi_potential in V, phi_dipole in e·Å
    """

    host_energy: float
    phi_energy: float
    net_charge: float
    forces: Array
    virial: Array
    of_atoms: dict[str, Array]

    @property
    def energy(self) -> float:
        """Host's and Φ's."""
        return self.host_energy + self.phi_energy


class Evaluator(Protocol):
    """From what a process holds to what it needs; all processes call it together."""

    @property
    def reach(self) -> float:
        """Å around its own atoms in which a process must have copies of all others."""

    def __call__(self, domain: Domain) -> Evaluation: ...


#: Properties of atoms by their names in the output of a model.
PROPERTIES = {"phi_charge": "charges", "phi_potential": "potential", "phi_dipole": "atomic_dipoles"}

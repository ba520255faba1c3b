"""GFN2-xTB by tblite: forces for sampling, and the labels of a frame."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.units import Bohr, Hartree

from training.quantities import LABELS
from training.shipped.organic_gfn2.bonding import on_grid

# Tight: energies, charges and dipoles then do not depend on how the self-consistent field got there, to 1e-8.
LABEL_ACCURACY = 1e-4
SAMPLING_ACCURACY = 1.0
MOST_ITERATIONS = 120  # what converges takes fewer than 50
#: Frames with a larger force on an atom are left out, eV/Å.
LARGEST_FORCE = 30.0
DIGITS = 8  # of the labels: what extended XYZ keeps
# Spin multiplicities of the free atoms' ground states.
ISOLATED_ATOMS = {1: 2, 6: 3, 7: 4, 8: 3, 9: 2, 15: 4, 16: 3, 17: 2}


class NotConverged(RuntimeError):
    """The self-consistent field has not converged."""


def single_point(
    numbers: np.ndarray, positions: np.ndarray, charge: int, accuracy: float = LABEL_ACCURACY, multiplicity: int = 1
) -> dict[str, Any]:
    """Energy (eV), forces (eV/Å), Mulliken charges (e) and the dipole (e·Å) about the origin of one structure.

    Parameters
    ----------
    numbers, positions : (N,) and (N, 3) in Å
    charge : total charge, e
    accuracy : tblite's; the smaller the tighter
    multiplicity : of the spin

    Raises
    ------
    NotConverged
        if the self-consistent field does not converge.
    """
    return SelfConsistentField(numbers, charge, accuracy, multiplicity).at(positions)


class SelfConsistentField:
    """GFN2-xTB of one molecule; each call starts from the charges of the one before."""

    def __init__(self, numbers: np.ndarray, charge: int, accuracy: float, multiplicity: int = 1) -> None:
        self._numbers = numbers
        self._charge, self._unpaired = float(charge), multiplicity - 1
        self._accuracy = accuracy
        self._calculator: Any = None
        self._result: Any = None

    def at(self, positions: np.ndarray) -> dict[str, Any]:
        """What :func:`single_point` gives."""
        from tblite.interface import Calculator as GFN2

        try:
            if self._calculator is None:
                self._calculator = GFN2(
                    "GFN2-xTB", self._numbers, positions / Bohr, charge=self._charge, uhf=self._unpaired
                )
                self._calculator.set("verbosity", 0)
                self._calculator.set("accuracy", self._accuracy)
                self._calculator.set("max-iter", MOST_ITERATIONS)
            else:
                self._calculator.update(positions / Bohr)
            self._result = self._calculator.singlepoint(self._result)
        except RuntimeError as error:
            self._result = None
            raise NotConverged(str(error)) from error
        return {
            "energy": float(self._result.get("energy")) * Hartree,
            "forces": -self._result.get("gradient") * (Hartree / Bohr),
            "charges": self._result.get("charges"),
            "dipole": self._result.get("dipole") * Bohr,
        }


class GridGFN2(Calculator):
    """For ase: the forces at the point of the grid that is next to the positions."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, numbers: np.ndarray, charge: int) -> None:
        super().__init__()
        self._field = SelfConsistentField(numbers, charge, SAMPLING_ACCURACY)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties or ["energy"], system_changes)
        assert atoms is not None  # ase asks for the forces of something
        found = self._field.at(on_grid(atoms.positions))
        self.results = {"energy": found["energy"], "forces": found["forces"]}


def labelled(numbers: np.ndarray, positions: np.ndarray, charge: int, info: dict[str, Any]) -> Atoms | str:
    """A frame with its labels under the trainer's keys, about its centre of mass; or what is wrong with it.

    The dipole of a charged frame is that about the centre of mass, μ − Q r_c.
    """
    frame = Atoms(numbers, positions)
    frame.positions = on_grid(frame.positions - frame.get_center_of_mass())
    try:
        found = single_point(numbers, frame.positions, charge)
    except NotConverged:
        return "not converged"
    if np.linalg.norm(found["forces"], axis=1).max() > LARGEST_FORCE:
        return f"a force above {LARGEST_FORCE:g} eV/Å"
    # −0.0 and 0.0 are one number and two texts: adding zero makes the first the second.
    rounded = {name: np.round(value, DIGITS) + 0.0 for name, value in found.items()}
    dipole = np.round(found["dipole"] - charge * frame.get_center_of_mass(), DIGITS) + 0.0
    frame.info = info | {
        LABELS["energy"].canonical: float(rounded["energy"]),
        LABELS["dipole"].default_key: dipole,
        LABELS["total_charge"].canonical: charge,
    }
    frame.arrays[LABELS["forces"].canonical] = rounded["forces"]
    frame.arrays[LABELS["charges"].canonical] = rounded["charges"]
    return frame


def isolated_atoms() -> list[Atoms]:
    """The free atoms in their ground states, for the trainer's E0s."""
    frames = []
    for number, multiplicity in ISOLATED_ATOMS.items():
        atom = Atoms(numbers=[number], positions=np.zeros((1, 3)))
        energy = single_point(atom.numbers, atom.positions, 0, multiplicity=multiplicity)["energy"]
        atom.info = {"config_type": "IsolatedAtom", LABELS["energy"].canonical: round(energy, DIGITS)}
        frames.append(atom)
    return frames

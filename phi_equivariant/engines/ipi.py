"""A potential of i-PI's: energies, forces, virials and charges of one structure, or of all beads in one batch."""

import json
from collections.abc import Sequence
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms

from phi_equivariant.engines.inference import Committee, Model, read_names_of_mace, ready_models
from phi_equivariant.errors import InputError

try:
    from ipi.utils.units import unit_to_internal, unit_to_user
except ImportError as error:
    raise ImportError(f"i-PI cannot be imported ({error}): pip install 'phi-equivariant[ipi]'.") from error

#: What i-PI adds to the parameters of an input.
_OF_IPI = ("verbosity", "verbose")
#: Results that i-PI can write, ``<trajectory extra_type="charges"> extras </trajectory>``: in e, V, e·Å and eV.
_EXTRAS = ("charges", "potential", "dipole", "host_energy", "phi_energy")
#: Energy, forces (n_atoms, 3) and virial (3, 3) in Hartree and Bohr, and the extras as JSON.
Result = tuple[float, np.ndarray, np.ndarray, str]


class PhiDriver:
    """What ``<ffdirect>`` of i-PI, and its client ``i-pi-py_driver``, compute with: the results of PhiCalculator.

    A file of two lines makes it known to i-PI (``pes_path``, ``-P``)::

        from phi_equivariant.engines.ipi import PhiDriver
        __DRIVER_NAME__, __DRIVER_CLASS__ = "phi", "PhiDriver"

    Parameters
    ----------
    model: as of ``PhiCalculator``: the folder of a saved model, a name of the zoo, or a pattern of folders
    template: a file that ase reads, with the atoms in i-PI's order. It says which directions are periodic, i-PI always
        having a cell, and holds the total charge, the spin multiplicity or an external field as ``PhiCalculator`` reads
        them
    device, dtype, head, skin: as of ``PhiCalculator``

    Raises
    ------
    InputError
        As ``PhiCalculator``; for a template that cannot be read, or that has other atoms than i-PI.
    """

    def __init__(
        self,
        model: Model | Sequence[Model] | None = None,
        template: str | None = None,
        device: str = "cpu",
        dtype: str | torch.dtype | None = None,
        head: str | None = None,
        skin: float = 0.5,
        **others: Any,
    ) -> None:
        if template is None:
            raise InputError("no template is given; name a file that ase reads, with the atoms in i-PI's order.")
        given = {name: value for name, value in others.items() if name not in _OF_IPI}
        model, dtype, keys = read_names_of_mace(model, dtype, given, ("template",))
        self.template = _first_frame(template)
        self.committee = Committee(ready_models(model, device, dtype), head, skin, keys)
        for one in self.committee.inputs:
            one.check_elements(self.template.numbers.tolist(), f" of the template {template}")
        self.committee.read(self.template)

    def __call__(self, cell: Any, pos: Any) -> Result | list[Result]:
        """One structure, or a list of them in one batch.

        Parameters
        ----------
        cell: (3, 3) in Bohr, its columns the vectors; or a list of these
        pos: positions (n_atoms, 3) in Bohr; or a list of these

        Returns
        -------
        energy in Hartree, forces in Hartree/Bohr, virial −V·stress in Hartree, all in float64, and the extras. The
        virial of molecules and wires, which have no stress, is NaN: a barostat then ends in an error at once.

        Raises
        ------
        InputError
            For positions or a cell that are not finite, or another number of atoms than in the template.
        """
        if isinstance(cell, list):
            return self._compute(cell, pos)
        return self._compute([cell], [pos])[0]

    def _compute(self, cells: Sequence[np.ndarray], positions: Sequence[np.ndarray]) -> list[Result]:
        structures = [self._structure(cell, rows) for cell, rows in zip(cells, positions, strict=True)]
        stressed = self.committee.has_stress(self.template.pbc)
        out = self.committee(structures, compute_force=True, compute_stress=stressed)
        found = {name: value.cpu().double().numpy() for name, value in out.items() if value is not None}
        size, results = len(self.template), []
        for index, atoms in enumerate(structures):
            mine = slice(index * size, (index + 1) * size)
            virial = -found["stress"][index] * atoms.cell.volume if stressed else np.full((3, 3), np.nan)
            extras = {
                name: found[name][mine if name in ("charges", "potential") else index].tolist()
                for name in _EXTRAS
                if name in found
            }
            results.append(
                (
                    float(unit_to_internal("energy", "electronvolt", found["energy"][index])),
                    np.asarray(unit_to_internal("force", "ev/ang", found["forces"][mine])),
                    np.asarray(unit_to_internal("energy", "electronvolt", virial)),
                    json.dumps(extras) if extras else "",
                )
            )
        return results

    def _structure(self, cell: np.ndarray, positions: np.ndarray) -> Atoms:
        if len(positions) != len(self.template):
            raise InputError(
                f"i-PI has {len(positions)} atoms, the template {len(self.template)}; give the file that i-PI starts "
                "from as the template."
            )
        atoms: Atoms = self.template.copy()
        atoms.set_constraint()  # i-PI's business
        atoms.positions = unit_to_user("length", "angstrom", positions)
        atoms.cell = unit_to_user("length", "angstrom", cell.T)
        return atoms


def _first_frame(template: str) -> Atoms:
    """What i-PI starts from too."""
    try:
        frames = list(ase.io.iread(template))
    except (OSError, ValueError, ase.io.formats.UnknownFileTypeError) as error:
        raise InputError(f"the template {template} cannot be read: {error}") from error
    if not frames:
        raise InputError(f"the template {template} holds no structure.")
    return frames[0]

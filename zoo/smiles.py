"""A structure from what a user types: a file, or a molecule as SMILES."""

import importlib.util
import os

import numpy as np
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.frames import first_structure

ATTEMPTS, SEED = 20, 7  # of the embedding in space, which starts from random distances
GAP = 3.0  # Å between the molecules of one SMILES, along x


def structure_of(text: str) -> Atoms:
    """The first structure of a file, or the molecule of a SMILES with hydrogens, conformer and total charge.

    Raises
    ------
    InputError
        If it is neither, or the file cannot be read, or the molecule cannot be built.
    """
    if text.strip() and os.path.exists(text):  # which a text too long for a name is not an error of
        return first_structure(text)
    if importlib.util.find_spec("rdkit") is None:
        raise InputError(
            f"There is no file {text!r}. Reading it as SMILES takes rdkit: pip install 'phi-equivariant[smiles]'."
        )
    return from_smiles(text)


def from_smiles(text: str) -> Atoms:
    """A molecule in vacuum: coordinates by ETKDG (rdkit) and MMFF94, ``info["total_charge"]`` the formal charge.

    Several molecules, such as ``C[NH3+].[Cl-]``, come one beside the other.

    Raises
    ------
    InputError
        If this is not SMILES, or no conformer is found.
    """
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
    except ImportError as error:
        raise InputError("SMILES take rdkit: pip install 'phi-equivariant[smiles]'.") from error
    with rdBase.BlockLogs():  # what rdkit says of a wrong text, over several lines
        molecule = Chem.MolFromSmiles(text) if text.strip() else None
        if molecule is None or molecule.GetNumAtoms() == 0:
            raise InputError(f"{text!r} is neither a file that is there nor a SMILES such as CCO or 'CC(=O)[O-]'.")
        molecule = Chem.AddHs(molecule)
        # ETKDG from a metric matrix, or from random coordinates where that finds nothing.
        if all(
            rdDistGeom.EmbedMolecule(molecule, ATTEMPTS, SEED, useRandomCoords=random) != 0 for random in (False, True)
        ):
            raise InputError(f"{text!r}: rdkit finds no coordinates for this molecule. Give a file with a structure.")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
            rdForceFieldHelpers.MMFFOptimizeMolecule(molecule)  # a better start, whatever comes out
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    atoms = Atoms(numbers, np.array(molecule.GetConformer().GetPositions()))
    end = None
    for part in map(list, Chem.GetMolFrags(molecule)):  # rdkit puts all of them into one place
        atoms.positions[part] -= atoms.positions[part].mean(axis=0)
        if end is not None:
            atoms.positions[part, 0] += end + GAP - atoms.positions[part, 0].min()
        end = atoms.positions[part, 0].max()
    atoms.info["total_charge"] = float(Chem.GetFormalCharge(molecule))
    return atoms

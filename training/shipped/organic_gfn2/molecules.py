"""The molecules and ions of the data set: those known by name, those put together by a rule, and who is in which split.

The names stand in ``common.smi``. The rule joins skeletons and groups, so that each group meets many neighbours.
Charges, protons and bond orders do not separate splits: acetic acid and acetate, or benzene and cyclohexane, share a
skeleton of heavy atoms, and one skeleton is in one split. Skeletons of few atoms are in training: they are what larger
molecules are made of, and each has a chemistry of its own that no other one tells.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from phi_equivariant.errors import InputError
from training.shipped.organic_gfn2.chance import fraction
from training.shipped.organic_gfn2.joining import joined

SPLITS = ("train", "valid", "test", "large")
VALID_SHARE, TEST_SHARE = 0.06, 0.11  # of the skeletons
LARGEST_PART = 4  # heavy atoms of skeletons that are in training in any case
LARGEST_NAMED = 26  # atoms, outside the split of large molecules
LARGEST_JOINED = 17  # atoms of a molecule that the rule makes


@dataclass(frozen=True)
class Molecule:
    """One molecule or ion.

    Parameters
    ----------
    name : of ``common.smi``, or of the skeleton and its groups
    smiles : structural formula
    split : one of ``SPLITS``
    charge : total charge, e
    atoms : number of atoms, hydrogen included
    character : "neutral", "zwitterion", "cation" or "anion"
    """

    name: str
    smiles: str
    split: str
    charge: int
    atoms: int
    character: str


@cache
def molecules() -> dict[str, Molecule]:
    """All molecules by name, no formula twice."""
    found: dict[str, Molecule] = {}
    formulas: dict[str, str] = {}
    for name, smiles, split in (*named(), *((name, smiles, None) for name, smiles in joined())):
        made = _molecule(name, smiles, split)
        key = canonical(smiles)
        if split is None and made.atoms > (LARGEST_JOINED if "." in name else LARGEST_NAMED):
            continue
        if "." in name and key in formulas:
            continue  # what has a name keeps it
        if key in formulas or name in found:
            raise InputError(f"common.smi: {name} ({smiles}) is there twice, also as {formulas.get(key, name)}.")
        formulas[key] = name
        found[name] = made
    return found


def named() -> list[tuple[str, str, str | None]]:
    """Name, SMILES and fixed split (or None) of each line of ``common.smi``."""
    text = (files(__package__) / "common.smi").read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("# ")]
    return [(row[1], row[0], row[2] if len(row) > 2 else None) for row in rows]


def canonical(smiles: str) -> str:
    """rdkit's canonical SMILES."""
    from rdkit import Chem

    return Chem.MolToSmiles(Chem.MolFromSmiles(smiles))


def skeleton(smiles: str) -> str:
    """Heavy atoms and which of them are bonded: charges, hydrogens and bond orders left out."""
    from rdkit import Chem

    whole = Chem.MolFromSmiles(smiles)
    bare = Chem.RWMol()
    for atom in whole.GetAtoms():
        heavy = Chem.Atom(atom.GetAtomicNum())
        heavy.SetNoImplicit(True)
        bare.AddAtom(heavy)
    for bond in whole.GetBonds():
        bare.AddBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), Chem.BondType.SINGLE)
    return Chem.MolToSmiles(bare)


@cache
def _fixed_skeletons() -> dict[str, str]:
    return {skeleton(smiles): split for _, smiles, split in named() if split}


def _split(smiles: str) -> str:
    from rdkit import Chem

    bare = skeleton(smiles)
    if bare in (fixed := _fixed_skeletons()):
        return fixed[bare]
    if Chem.MolFromSmiles(smiles).GetNumHeavyAtoms() <= LARGEST_PART:
        return "train"
    place = fraction(bare)
    return "test" if place < TEST_SHARE else "valid" if place < TEST_SHARE + VALID_SHARE else "train"


def _molecule(name: str, smiles: str, split: str | None) -> Molecule:
    from rdkit import Chem

    parsed = Chem.MolFromSmiles(smiles)
    if parsed is None:
        raise InputError(f"{name}: rdkit cannot read the SMILES {smiles!r}. Correct it.")
    parsed = Chem.AddHs(parsed)
    charge = Chem.GetFormalCharge(parsed)
    character = "cation" if charge > 0 else "anion" if charge < 0 else "neutral"
    if charge == 0 and all(_stands_alone(parsed, sign) for sign in (1, -1)):
        character = "zwitterion"
    return Molecule(name, smiles, split or _split(smiles), charge, parsed.GetNumAtoms(), character)


def _stands_alone(parsed: Any, sign: int) -> bool:
    """Whether an atom has a formal charge of this sign and no neighbour has one of the other, as in a nitro group."""
    return any(
        atom.GetFormalCharge() * sign > 0
        and not any(other.GetFormalCharge() * sign < 0 for other in atom.GetNeighbors())
        for atom in parsed.GetAtoms()
    )

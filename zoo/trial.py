"""A first look at a trained model: a structure is relaxed, and its energy, charges and dipole are shown."""

import dataclasses
import html
import json
import string
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.optimize import BFGS

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from phi_equivariant.inputs.external_field import read_field
from phi_equivariant.inputs.state import reader_of
from zoo import viewer
from zoo.smiles import structure_of
from zoo.store import card
from zoo.store.find import locate
from zoo.store.pretrained import load_folder
from zoo.store.registry import CARD_FILE

MOST_ATOMS = 500  # more would take minutes, and a page is for looking
# Whose warnings are shown: those of what stands beside it, as other packages do, are not.
OURS = tuple(Path(__file__).resolve().parents[1] / package for package in ("phi_equivariant", "zoo"))
FORCE, STEPS = 0.02, 500  # eV/Å, and the most steps of the relaxation


@dataclasses.dataclass(frozen=True)
class Trial:
    """What came out.

    atoms : the relaxed structure; total_charge in e; energy and first_energy (before) in eV; force : the largest
    left in eV/Å; steps; converged; charges (n_atoms,) in e and dipole (3,) in e·Å, None where the model or the
    structure has none; potential (n_atoms,) in V; notes : what to think of before using it.
    """

    atoms: Atoms
    total_charge: float
    energy: float
    first_energy: float
    force: float
    steps: int
    converged: bool
    charges: np.ndarray | None
    dipole: np.ndarray | None
    potential: np.ndarray | None
    notes: list[str]


def run(
    name: str,
    text: str,
    total_charge: float | None = None,
    fmax: float = FORCE,
    steps: int = STEPS,
    offline: bool = False,
) -> Trial:
    """Load a model, read a structure and relax its atoms; the cell of a periodic one stays.

    Parameters
    ----------
    name: of a trained model, its folder or address
    text: path of a file, or SMILES
    total_charge: in e, in place of that of the file or of the SMILES
    fmax, steps: the relaxation ends when no force is larger, in eV/Å, or after so many steps
    offline: never use the network

    Raises
    ------
    InputError
        If there is no such model or structure, it has elements that the model does not know, too many atoms, or does
        not relax.
    """
    folder = locate(name, offline)
    atoms = structure_of(text)
    if len(atoms) > MOST_ATOMS:
        raise InputError(
            f"{text} has {len(atoms)} atoms; at most {MOST_ATOMS} are tried. PhiCalculator({name!r}) takes larger ones."
        )
    if not 0 < fmax < np.inf or steps < 0:
        raise InputError(f"fmax is {fmax} and steps {steps}; expected a force above zero and a number of steps.")
    if total_charge is not None:
        for key in ("total_charge", "charge"):
            atoms.info.pop(key, None)
        atoms.info["total_charge"] = float(total_charge)
    model, _ = load_folder(folder)
    known: Any = model.atomic_numbers
    if unknown := sorted(set(atoms.numbers.tolist()) - set(known.tolist())):
        raise InputError(
            f"{text} has {_symbols(unknown)}, which {name} does not know; it knows {_symbols(known.tolist())}."
        )
    about = card.read(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}
    atoms.calc = PhiCalculator(model, dtype="float64")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        charge = float(reader_of(model).read(atoms)["total_charge"])
        first = float(atoms.get_potential_energy())
        start = atoms.positions.copy()
        search = BFGS(atoms, logfile=None)
        converged = bool(search.run(fmax=fmax, steps=steps))
    results, phi = atoms.calc.results, atoms.calc.phi_results
    force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    if not np.isfinite(atoms.positions).all() or not np.isfinite(force):
        raise InputError(f"{text} falls apart with {name}: its positions are not finite. The model is not made for it.")
    notes = _notes(about, charge, float(np.linalg.norm(atoms.positions - start, axis=1).max()))
    ours = (one for one in warned if any(Path(one.filename).is_relative_to(folder) for folder in OURS))
    notes += dict.fromkeys(str(one.message) for one in ours)
    if atoms.constraints:
        largest = float(np.linalg.norm(atoms.get_forces(apply_constraint=False), axis=1).max())
        kinds = ", ".join(type(constraint).__name__ for constraint in atoms.constraints)
        notes.insert(0, f"the file's constraints act ({kinds}); without them the largest force is {largest:.3f} eV/Å")
    if (field := read_field(atoms)).any():
        notes.insert(0, f"it is in the file's external field, {' '.join(f'{value:g}' for value in field)} V/Å")
    return Trial(
        atoms=atoms,
        total_charge=charge,
        energy=float(results["energy"]),
        first_energy=first,
        force=force,
        steps=search.nsteps,
        converged=converged,
        charges=results.get("charges"),
        dipole=results.get("dipole"),
        potential=phi.get("potential"),
        notes=notes,
    )


def _symbols(numbers: list[int]) -> str:
    return ", ".join(chemical_symbols[number] for number in numbers)


def _notes(about: dict[str, Any], charge: float, moved: float) -> list[str]:
    """What the model's card says against this use, and what the relaxation itself does."""
    notes = []
    trained = about.get("charge_states")
    if trained and charge not in trained:
        charges = ", ".join(viewer.charge_text(float(one)) for one in trained)
        notes.append(f"it was trained on total charge {charges}, not {viewer.charge_text(charge)}")
    if about.get("not_for"):
        notes.append(f"it is not for {' '.join(str(about['not_for']).split())}")
    if moved > 1.0:
        notes.append(f"an atom moved by {moved:.1f} Å: look whether the molecule is still the same")
    return notes


def lines(name: str, trial: Trial) -> list[tuple[str, str]]:
    """(what, text) for the terminal, charges as a line per element."""
    converged = "" if trial.converged else ", not converged"
    found = [
        ("model", name),
        ("structure", f"{trial.atoms.get_chemical_formula(mode='hill')}, {len(trial.atoms)} atoms, total charge "
                      f"{viewer.charge_text(trial.total_charge)}"),
        ("relaxed", f"{trial.steps} steps, largest force {trial.force:.3f} eV/Å{converged}"),
        ("energy", f"{trial.energy:.4f} eV ({trial.energy - trial.first_energy:+.4f} eV by relaxing)"),
    ]  # fmt: skip
    if trial.charges is not None:
        found.append(("charges, e", _charges_by_element(trial.atoms, trial.charges)))
    if trial.dipole is not None:
        vector = " ".join(f"{value:.3f}" for value in trial.dipole)
        origin = "about the centre of mass" if trial.total_charge else ""
        size = f", size {np.linalg.norm(trial.dipole):.3f}" if np.isfinite(trial.dipole).all() else ""
        found.append(("dipole, e·Å", f"{vector}{size} {origin}".rstrip()))
    return [*found, *(("note", note) for note in trial.notes)]


def _charges_by_element(atoms: Atoms, charges: np.ndarray) -> str:
    """All charges of each element, in the order of the atoms."""
    rows = []
    for symbol in dict.fromkeys(atoms.get_chemical_symbols()):
        own = charges[[s == symbol for s in atoms.get_chemical_symbols()]]
        rows.append(f"{symbol:2} {' '.join(f'{value:+.2f}' for value in own)}")
    return "\n".join(rows)


PAGE = string.Template("""<!DOCTYPE html>
<html lang="en" data-errors="0">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title – Φ-equivariant</title>
<style>$style</style>
</head>
<body>
<header><h1>$title</h1></header>
<main>
<section><dl>$facts</dl></section>
<section id="view">
<div class="viewer">
<div class="choice" id="structure-choice" role="group" aria-label="Structure"></div>
<div class="stage">
<div class="choice" id="colour-choice" role="group" aria-label="Colour"></div>
<div id="viewer" role="img" aria-label="The structure; drag to turn it"></div>
<div id="scale" hidden><span></span><i></i><span></span></div>
<p id="about"></p>
<p id="atom">Drag to turn. Click first to zoom with the wheel. Point at an atom for its values.</p>
</div>
</div>
<noscript><p>The viewer needs JavaScript.</p></noscript>
</section>
</main>
<footer><p>Written by phi-zoo try. Structures are drawn by 3Dmol.js $version.</p>
<details><summary>Licence of 3Dmol.js</summary><pre class="wrapped">$licence</pre></details></footer>
<script type="application/json" id="structures">$structures</script>
<script>$viewer</script>
<script>$script</script>
</body>
</html>
""")


def write_page(path: Path, name: str, text: str, trial: Trial) -> None:
    """One HTML file with the relaxed structure, coloured by charge or potential, that needs nothing else."""
    fields = {key: value for key in ("charges", "potential") if (value := getattr(trial, key)) is not None}
    told = {"energy": f"{trial.energy:.4f} eV"}
    charge = viewer.charge_text(trial.total_charge)
    shown = viewer.view(text, "relaxed", trial.atoms, charge, told, fields)
    facts = "".join(
        f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(said)}</dd></div>" for what, said in lines(name, trial)
    )
    page = PAGE.substitute(
        title=html.escape(f"{text}: {name}"),
        facts=facts,
        version=viewer.VERSION,
        structures=json.dumps([shown]).replace("<", "\\u003c"),  # which could end the element
        licence=html.escape(viewer.asset("licence")),
        **{part: viewer.asset(part) for part in ("style", "viewer", "script")},
    )
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))

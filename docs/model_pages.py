"""A page for each trained model of the package, made from its card when the site is built."""

import json
from pathlib import Path

import matplotlib
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import natural_cutoffs, neighbor_list

from zoo.store import card
from zoo.store.registry import CARD_FILE, REFERENCE_FILE, SHIPPED, shipped
from zoo.store.summary import SHOWN, summary_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = """# {name}

{what}.

```python
from phi_equivariant import PhiCalculator

atoms.calc = PhiCalculator("{name}")
```

    phi-zoo try {name} FILE_OR_SMILES{tuning}

![The reference structure, coloured by charge, and test errors]({name}.svg)

| | |
|---|---|
{facts}

**Not for**: {not_for}.

## Test errors

RMSE on held-out structures. {seeds}

{errors}

## How it was made

    {command}

{training}
"""
INDEX = """# Trained models

Made from the models' cards. `phi-zoo list` shows the same in a terminal.

| model | for | elements | total charge | forces, meV/Å (without Φ) |
|---|---|---|---|---|
{rows}

```{{toctree}}
:hidden:

{names}
```
"""


def write_pages(folder):
    """``<name>.md`` and ``<name>.svg`` of every model, and ``index.md``; names of the models."""
    folder.mkdir(exist_ok=True)
    for old in (*folder.glob("*.md"), *folder.glob("*.svg")):
        old.unlink()
    names, rows = sorted(path.name for path in SHIPPED.iterdir() if path.name in shipped()), []
    for name in names:
        content = card.read(SHIPPED / name / CARD_FILE)
        about = summary_of(content)
        (folder / f"{name}.md").write_text(page(name, content, about), encoding="utf-8")
        draw(folder / f"{name}.svg", json.loads((SHIPPED / name / REFERENCE_FILE).read_text()), about)
        forces = pair(about.errors.get("forces"), "{} ({})")
        charges = ", ".join(map(str, about.charge_states))
        rows.append(f"| [{name}]({name}.md) | {about.what} | {' '.join(about.elements)} | {charges} | {forces} |")
    index = INDEX.format(rows="\n".join(rows), names="\n".join(names))
    (folder / "index.md").write_text(index, encoding="utf-8")
    return names


def pair(values, form):
    """Errors with Φ and without, – for what is not known."""
    return form.format(*("–" if value is None else f"{value:.3g}" for value in values or (None, None)))


def table(test, errors):
    """Errors on a test set."""
    lines = [f"| {test} | with Φ | without Φ |", "|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {SHOWN[key][0]}, {SHOWN[key][1]} | {pair(of, '{} | {}')} |" for key, of in errors.items())]
    )


def page(name, content, about):
    """The text of a page."""
    data, training = content["data"], content["training"]
    size = sum(info.size for info in shipped()[name].files.values())
    source = f"{data.get('source') or 'not stated'} ({data.get('licence') or 'licence not stated'})"
    facts = {
        "elements": " ".join(about.elements),
        "total charges in training": ", ".join(map(str, about.charge_states)),
        "charges of atoms": about.charges().partition("; ")[2],
        "level of theory": content["level_of_theory"],
        "data": f"{data.get('dataset') or data.get('train_file')}, {source}",
        "cite": data.get("citation", ""),
        "parameters": training.get("parameters"),
        "size": f"{size / 1e6:.2f} MB",
        "speed": content["speed"].get("evaluation", ""),
        "licence": content["licence"],
    }
    seeds = len({row.get("seed") for row in content["errors"] if row.get("model") == "phi"})
    took = content["speed"].get("training")
    return PAGE.format(
        name=name,
        what=about.what,
        tuning=f"\n    phi-mace-train --foundation_model {name} …" if name.startswith("phi-mace-") else "",
        not_for=" ".join(str(content["not_for"]).split()).rstrip("."),
        facts="\n".join(f"| {key} | {' '.join(str(value).split())} |" for key, value in facts.items() if value),
        seeds="One seed: differences of a few per cent are not significant."
        if seeds == 1
        else f"Means of {seeds} seeds.",
        errors="\n\n".join(table(*test) for test in about.tests.items()),
        command=" ".join(str(training["command"]).split()),
        training=f"{training.get('epochs')} epochs{f', {took}' if took else ''}.",
    )


def draw(path, reference, about):
    """The reference structure seen along its shortest axis, and errors as parts of those without Φ."""
    structure = reference["structure"]
    atoms = Atoms(structure["numbers"], structure["positions"])
    charges = np.array(reference["charges"] or np.zeros(len(atoms)))
    centred = atoms.positions - atoms.positions.mean(0)
    seen = centred @ np.linalg.svd(centred, full_matrices=False)[2].T  # (n_atoms, 3), longest axis first
    picture, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(2, 1), layout="constrained")
    for first, second in zip(*neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.1)), strict=True):
        left.plot(*seen[[first, second], :2].T, color="0.6", lw=2, zorder=-99)
    order, limit = np.argsort(seen[:, 2]), np.abs(charges).max() or 1.0
    sizes = 700 * covalent_radii[atoms.numbers] ** 2
    drawn = left.scatter(
        *seen[order, :2].T, s=sizes[order], c=charges[order], cmap="RdBu", vmin=-limit, vmax=limit, edgecolors="0.3"
    )
    for position, symbol in zip(seen, atoms.get_chemical_symbols(), strict=True):
        left.annotate(symbol, position[:2], ha="center", va="center", fontsize=7)
    left.set(aspect="equal")
    left.axis("off")
    picture.colorbar(drawn, ax=left, label="charge, e", shrink=0.8)
    shares = {SHOWN[key][0]: found / bare for key, (found, bare) in about.errors.items() if bare}
    right.barh(list(shares), list(shares.values()), color="C0", height=0.5)
    right.axvline(1, color="0.4", lw=1)
    right.set(xlabel="test RMSE, with Φ / without", xlim=(0, max([1.2, *(1.1 * value for value in shares.values())])))
    right.invert_yaxis()
    picture.savefig(path)
    plt.close(picture)


if __name__ == "__main__":
    print(*write_pages(Path(__file__).parent / "models"), sep="\n")

"""Structures and models that LAMMPS is run with: in a program of its own under mpirun, which writes what it found.

mpirun -np 2 python tests/support/lammps_cases.py FILE.npz CASE ...
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from generated_code import generated_once

from systems import enlarge_dipoles, mace_host, nequip_host, potential  # isort: skip

ELEMENTS = ["H", "C", "N", "O"]


def water(n=3, seed=3, cell=((9.3, 0, 0), (1.1, 8.1, 0), (0.4, -0.7, 8.7))):
    """A few water molecules in a triclinic cell, in LAMMPS' orientation, smaller than what two layers see."""
    random = np.random.default_rng(seed)
    atoms = Atoms(cell=cell, pbc=True)
    for centre in np.array([(0.4, 0.1, 0.1), (0.7, 0.6, 0.1), (0.7, 0.1, 0.6)])[:n]:
        one = molecule("H2O")
        one.rotate(random.uniform(0, 360), random.normal(size=3))
        one.positions += (centre + random.uniform(0, 0.1, 3)) @ np.asarray(cell)
        atoms += one
    return atoms


def slab():
    """The same, periodic in two directions."""
    atoms = water(cell=((9.3, 0, 0), (1.1, 8.1, 0), (0, 0, 8.7)))
    atoms.pbc = (True, True, False)
    return atoms


def many(pbc=True):
    """So many that sums are shared: 64 molecules on a lattice, turned at random."""
    random, atoms = np.random.default_rng(1), Atoms(cell=[12.6, 12.4, 12.8], pbc=pbc)
    for place in np.ndindex(4, 4, 4):
        one = molecule("H2O")
        one.rotate(random.uniform(0, 360), random.normal(size=3))
        one.positions += (np.array(place) + 0.4 + random.uniform(0, 0.1, 3)) * atoms.cell.lengths() / 4
        atoms += one
    return atoms


def apart():
    """Two molecules far apart in the open, so that processes in between have no atoms."""
    atoms = molecule("CH3OH") + Atoms("OH", [[16.2, 0.4, 0.3], [16.2, 1.3, 0.5]])
    atoms.positions += 0.05 * np.random.default_rng(0).normal(size=atoms.positions.shape)
    return atoms


OTHER_HOST = {"atomic_numbers": [1, 6, 7, 8], "atomic_energies": [-3.0, -2.3, -1.7, -1.0], "hidden_channels": 8}


def schnet():
    """A host that cannot exchange features between layers; so are the next two."""
    from zoo.pyg_hosts import SchNet

    torch.manual_seed(0)
    return SchNet(**OTHER_HOST, r_max=4.0, num_filters=8, num_gaussians=8)


def visnet():
    """One with attention, and features of edges."""
    from zoo.pyg_hosts import ViSNet

    torch.manual_seed(0)
    return ViSNet(**OTHER_HOST, r_max=3.0, num_heads=2, num_interactions=2, num_rbf=8)


def painn():
    """One with vectors."""
    from zoo.painn import PaiNN

    torch.manual_seed(0)
    return PaiNN(**OTHER_HOST, r_max=4.0, num_interactions=2, num_bessel=6)


def embedded():
    """A mace host that embeds the total charge, which its own exchange leaves out."""
    spec = {"total_charge": {"type": "continuous", "in_dim": 1, "emb_dim": 4, "per": "graph"}}
    return mace_host(embedding_specs=spec)


@dataclasses.dataclass(frozen=True)
class Case:
    """``model`` gives it; ``lines`` go before the atoms; ``run`` after the first evaluation."""

    model: Callable[[], torch.nn.Module]
    atoms: Callable[[], Atoms] = water
    total_charge: float = 0.0
    units: str = "metal"
    cutoff: float = 6.0
    lines: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    dtype: str = "float64"
    field: tuple[float, float, float] | None = None


def _dipoles():
    model = potential(multipoles=1, channels=2)
    enlarge_dipoles(model)
    return model


CASES = {
    "mace": Case(potential, run=("velocity all set 500 0 0", "fix n all nve", "run 8")),
    "nequip open": Case(lambda: potential(host=nequip_host(), electronegativity=6.0), apart, -1.0, "real"),
    "bare": Case(nequip_host, lines=("processors 1 1 *",)),
    "graph": Case(lambda: potential(operator="graph", low_pass=0.5)),
    "learned": Case(lambda: potential(poisson="learned", channels=2)),
    "dipoles": Case(_dipoles),
    "qeq": Case(lambda: potential(charge_model="qeq", electronegativity=6.0), apart, -1.0, field=(0.02, 0.1, -0.05)),
    "slab": Case(lambda: potential(charge_model="sqe"), slab, field=(0.0, 0.0, 0.1)),
    "sqe": Case(lambda: potential(charge_model="sqe", polarizable=True)),
    "schnet": Case(lambda: potential(host=schnet()), cutoff=26.0),
    "visnet": Case(lambda: potential(host=visnet(), charge_model="qeq"), slab, cutoff=20.0),
    "painn": Case(lambda: potential(host=painn(), multipoles=1), cutoff=20.0),
    "embedded": Case(lambda: potential(host=embedded()), lambda: water(1), cutoff=10.0),
    "float32": Case(potential, lambda: water(1), dtype="float32"),
    "edges shared": Case(lambda: potential(host=mace_host("8x0e"), operator="graph"), many),
    "flow shared": Case(lambda: potential(host=mace_host("8x0e"), charge_model="sqe", polarizable=True), many),
    "slab shared": Case(
        lambda: potential(host=mace_host("8x0e"), charge_model="sqe", electronegativity=6.0),
        lambda: many((True, True, False)),
        1.0,
    ),
}


def made(case):
    """The model of a case in double precision, the same in every process."""
    torch.set_default_dtype(torch.float64)
    return case.model()


def start(lammps, case, extra=()):
    """A LAMMPS object that holds a case's atoms."""
    atoms = case.atoms()
    program = lammps(cmdargs=["-log", "none", "-screen", "none"])
    if atoms.pbc.any():
        a, b, c = atoms.cell.array
        shape = f"prism 0 {a[0]} 0 {b[1]} 0 {c[2]} {b[0]} {c[0]} {c[1]}"
    else:
        low, high = atoms.positions.min(0) - 2, atoms.positions.max(0) + 2
        shape = "block " + " ".join(f"{x} {y}" for x, y in zip(low, high, strict=True))
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    program.commands_list(
        [
            f"units {case.units}", f"boundary {boundary}", "atom_modify map yes", *case.lines,
            f"region box {shape}", "create_box 4 box", f"comm_modify cutoff {case.cutoff}", "mass * 12.0",
            f"timestep {0.0005 if case.units == 'metal' else 0.5}",
        ]
    )  # fmt: skip
    types = [ELEMENTS.index(symbol) + 1 for symbol in atoms.symbols]
    program.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types, atoms.positions.ravel().tolist())
    program.commands_list(["fix phi all external pf/callback 1 1", *extra])
    return program


def found(program, prefix):
    """What LAMMPS has after a run, {name: array}."""

    def gathered(name, width):
        return np.array(program.gather(name, 1, width)).reshape(-1, width)

    result = {"x": np.array(program.gather_atoms("x", 1, 3)), "f": np.array(program.gather_atoms("f", 1, 3))}
    result |= {f"t{name}": program.get_thermo(name) for name in ("pe", "pxx", "pyy", "pzz", "pxy", "pxz", "pyz", "ke")}
    result["energies"] = [program.numpy.extract_fix("phi", 0, 1, nrow=place) for place in range(3)]
    if program.has_id("fix", "phi_atoms"):
        result |= {name: gathered(name, 1) for name in ("d_phi_charge", "d_phi_potential")}
        if _has_dipoles(program):
            result["d2_phi_dipole"] = gathered("d2_phi_dipole", 3)
    low, high, xy, yz, xz, _, _ = program.extract_box()
    size = np.subtract(high, low)
    result["cell"] = [[size[0], 0, 0], [xy, size[1], 0], [xz, yz, size[2]]]
    return {f"{prefix}/{name}": np.asarray(value) for name, value in result.items()}


def _has_dipoles(program):
    return program.extract_atom_datatype("d2_phi_dipole") >= 0


def main(place, names):
    """Run cases and write what was found, on the first process; ``refused`` among them is what is refused."""
    from phi_equivariant.engines.lammps.mpi import load_mpi
    from phi_equivariant.lammps import LammpsPotential, load_lammps

    lammps, results = load_lammps(), {}
    for name in names:
        if name == "refused":
            results[name] = np.array(json.dumps(refused(lammps)))
            continue
        case = CASES[name]
        program = start(lammps, case)
        info = {} if case.field is None else {"external_field": case.field}
        driver = LammpsPotential(made(case), ELEMENTS, case.total_charge, info, dtype=case.dtype)
        driver.attach(program)
        program.command("run 0")
        results |= found(program, f"{name}/start")
        results[f"{name}/owned"] = np.array(program.get_mpi_comm().allgather(program.extract_setting("nlocal")))
        if case.run:
            program.commands_list(list(case.run))
            results |= found(program, f"{name}/end")
            results[f"{name}/owned_later"] = np.array(
                program.get_mpi_comm().allgather(program.extract_setting("nlocal"))
            )
        driver.check()
        program.close()
    if load_mpi().COMM_WORLD.rank == 0:
        np.savez(Path(place), **results)


def refused(lammps):
    """What is said of inputs and models that cannot be, on all processes alike; and the processes' places."""
    from phi_equivariant.engines.lammps.mpi import load_mpi, place_on_machine
    from phi_equivariant.errors import InputError
    from phi_equivariant.lammps import LammpsPotential

    mpi, usual = load_mpi(), CASES["mace"]
    said = {"places": mpi.COMM_WORLD.allgather(place_on_machine(mpi))}
    attempts = {
        "cutoff": (dataclasses.replace(usual, cutoff=3.0), ELEMENTS),
        "units": (dataclasses.replace(usual, units="lj"), ELEMENTS),
        "num_modes": (dataclasses.replace(usual, model=lambda: potential(num_modes=3)), ELEMENTS),
        "fix": (usual, ELEMENTS),
        "types": (usual, ["O", "H"]),
    }
    for name, (case, elements) in attempts.items():
        program = start(lammps, case, ["unfix phi"] if name == "fix" else [])
        try:
            LammpsPotential(made(case), elements).attach(program)
        except InputError as error:
            said[name] = str(error)
        program.close()
    return said


if __name__ == "__main__":
    with generated_once():
        main(sys.argv[1], sys.argv[2:])

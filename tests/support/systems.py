"""Hosts, structures and batches that several tests use."""

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import neighbor_list

from phi_equivariant import PhiConfig, attach_phi
from phi_equivariant.structures import Structures
from zoo.nequip import NequIP

from e3nn import o3  # isort: skip  (after phi_equivariant, which makes e3nn 0.4.4 importable)
from mace import data, modules, tools  # isort: skip
from mace.tools import torch_geometric  # isort: skip

ELEMENTS = [1, 6, 7, 8]
R_MAX = 4.0
RESIDUAL_BLOCK = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
FIRST_BLOCK = modules.interaction_classes["RealAgnosticInteractionBlock"]


def mace_host(
    hidden_irreps="8x0e+8x1o", num_interactions=2, heads=None, scale_shift=True, seed=0, correlation=2, **other
):
    """A small mace model in torch's default precision."""
    torch.manual_seed(seed)
    n_heads = len(heads) if heads else 1
    energies = np.tile(np.linspace(-3, -1, len(ELEMENTS)), (n_heads, 1))
    arguments = dict(
        r_max=R_MAX, num_bessel=6, num_polynomial_cutoff=5, max_ell=2, interaction_cls=RESIDUAL_BLOCK,
        interaction_cls_first=FIRST_BLOCK, num_interactions=num_interactions, num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps(hidden_irreps), MLP_irreps=o3.Irreps("8x0e"),
        atomic_energies=energies if heads else energies[0], avg_num_neighbors=8.0, atomic_numbers=ELEMENTS,
        correlation=correlation, gate=torch.nn.functional.silu, heads=heads, **other,
    )  # fmt: skip
    if not scale_shift:
        return modules.MACE(**arguments)
    return modules.ScaleShiftMACE(
        **arguments, atomic_inter_scale=[1.0] * n_heads if heads else 1.0,
        atomic_inter_shift=[0.0] * n_heads if heads else 0.0,
    )  # fmt: skip


def nequip_host(hidden_irreps="8x0e+8x1o", num_interactions=3, seed=0, **other):
    """A small NequIP in torch's default precision."""
    torch.manual_seed(seed)
    arguments = dict(
        atomic_numbers=ELEMENTS, atomic_energies=[-3.0, -2.3, -1.7, -1.0], r_max=R_MAX, hidden_irreps=hidden_irreps,
        num_interactions=num_interactions, num_bessel=6, radial_MLP=(16,), avg_num_neighbors=8.0,
    )  # fmt: skip
    return NequIP(**{**arguments, **other})


def gentle_potential():
    """A potential in double precision whose untrained host pushes little."""
    torch.set_default_dtype(torch.float64)
    model = potential(host=mace_host("8x0e"))
    with torch.no_grad():
        model.host.scale_shift.scale.mul_(0.05)
    return model


def batch_of(*structures, heads=("Default",), dtype=None):
    """Structures as one batch with mace's keys, by mace's own data pipeline."""
    table = tools.AtomicNumberTable(ELEMENTS)
    items = []
    for atoms in structures:
        item = data.AtomicData.from_config(
            data.config_from_atoms(atoms, head_name=atoms.info.get("head", heads[0])),
            z_table=table, cutoff=R_MAX, heads=list(heads),
        )  # fmt: skip
        item.total_charge = torch.tensor(float(atoms.info.get("total_charge", 0.0)))
        items.append(item)
    batch = next(iter(torch_geometric.dataloader.DataLoader(items, batch_size=len(items), shuffle=False))).to_dict()
    if dtype is None:
        return batch
    return {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}


def structures_of(*structures, elements=ELEMENTS, r_max=None):
    """Structures as the library holds them, with the edges up to ``r_max``, none where None, in torch's default
    precision."""
    sizes = [len(atoms) for atoms in structures]
    ptr, edges, shifts = np.concatenate([[0], np.cumsum(sizes)]), [np.zeros((2, 0), int)], [np.zeros((0, 3))]
    for atoms, first in zip(structures if r_max else [], ptr, strict=False):
        receivers, senders, images = neighbor_list("ijS", atoms, r_max)
        edges.append(np.stack([senders, receivers]) + first)
        shifts.append(-images @ atoms.cell.array)
    number = torch.get_default_dtype()
    return Structures(
        positions=torch.tensor(np.concatenate([atoms.positions for atoms in structures])).to(number),
        species=torch.tensor([elements.index(z) for atoms in structures for z in atoms.numbers.tolist()]),
        batch=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        ptr=torch.tensor(ptr),
        edge_index=torch.tensor(np.concatenate(edges, axis=1)),
        shifts=torch.tensor(np.concatenate(shifts)).to(number),
        total_charge=torch.tensor([float(atoms.info.get("total_charge", 0.0)) for atoms in structures]).to(number),
        cell=torch.tensor(np.stack([atoms.cell.array for atoms in structures])).to(number),
        pbc=torch.tensor(np.stack([atoms.pbc for atoms in structures])),
    )


def potential(seed=0, host=None, **config):
    """A host with Φ whose heads are large enough that mistakes in them show."""
    model = attach_phi(mace_host(seed=seed) if host is None else host, PhiConfig(**config))
    with torch.no_grad():
        for heads in (model.phi.alpha_net, getattr(model.phi.charge_model, "heads", None)):
            for head in getattr(heads, "heads", ()):
                head.out.weight.mul_(10.0)
    return model


def enlarge_dipoles(model):
    """Make atomic dipoles, where the model has them, so large, about 0.5 e·Å, that mistakes in them show."""
    with torch.no_grad():
        for head in getattr(model.phi.alpha_net, "vector_heads", {}).values():
            head.vectors.weight.mul_(20.0)
            head.weights.out.weight.mul_(100.0)


def distorted(atoms, seed=0, size=0.05):
    """A copy with normally distributed displacements."""
    atoms = atoms.copy()
    atoms.positions += size * np.random.default_rng(seed).normal(size=atoms.positions.shape)
    return atoms


def ethanol():
    """Ethanol, slightly distorted."""
    return distorted(molecule("CH3CH2OH"))


def regular_tetrahedron():
    """Four unlike atoms whose graph Laplacian is threefold degenerate (K4)."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1.0]])
    return Atoms("CNOH", 0.75 * corners)


def ideal_ring(symbols="CCNCCC", radius=1.4):
    """Atoms on a regular polygon: pairs of degenerate modes."""
    angles = 2 * np.pi * np.arange(len(symbols)) / len(symbols)
    return Atoms(list(symbols), np.c_[radius * np.cos(angles), radius * np.sin(angles), 0 * angles])

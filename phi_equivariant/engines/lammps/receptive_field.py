"""How far a host sees: the number of cut-offs that lie between an atom and the farthest atom its features know of."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms

from phi_equivariant.engines.inference import ModelInput
from phi_equivariant.errors import InputError
from phi_equivariant.host_protocol import MaceLike
from phi_equivariant.potential import PhiPotential, run_model

_LONGEST = 12


def layers_seen(model: torch.nn.Module, make: ModelInput, info: Mapping[str, Any]) -> int:
    """Number of steps from neighbour to neighbour over which an atom's energy and features depend on positions.

    Found from the derivatives of one atom at the end of a chain in which only neighbours are within the cut-off; a
    pair of atoms far off must have none.

    Parameters
    ----------
    model: ``PhiPotential`` or a host; make: what makes its batches
    info: what the host embeds of a structure, by name

    Raises
    ------
    InputError
        If the features depend on more of the chain than can be, or on atoms that nothing connects.
    """
    host = model.host if isinstance(model, PhiPotential) else model
    r_max = float(cast(MaceLike, model).r_max)
    random = np.random.default_rng(0)
    n = _LONGEST + 1
    chain = np.c_[0.7 * r_max * np.arange(n), random.uniform(-0.15, 0.15, (n, 2)) * r_max]
    far = np.array([[0, 0, 0], [0.5, 0.2, 0.1]]) * r_max + [0, 0, 5 * r_max]
    numbers = np.resize(np.asarray(cast(MaceLike, model).atomic_numbers.tolist()), n + 2)
    data = make([Atoms(numbers, np.concatenate([chain, far]), info=dict(info))])
    data["positions"] = data["positions"].requires_grad_()
    seen = []
    with torch.enable_grad():
        if isinstance(model, PhiPotential):
            out, layers = model.host_and_layers(data, training=True)
            seen = [features[0] for features in layers]
        else:
            out = run_model(host, data, compute_force=False, training=True)
        energies = out["node_energy"]
        assert energies is not None
        total = energies[0].double() + sum((part.double().square() + part.double()).sum() for part in seen)
        (slope,) = torch.autograd.grad(total, data["positions"])
    known = (slope != 0).any(1).cpu().numpy()
    if known[n:].any():
        raise InputError(
            "the host's energies or features of an atom depend on atoms that no chain of neighbours connects it with; "
            "its structures cannot be divided: run on one process."
        )
    farthest = int(np.flatnonzero(known[:n]).max(initial=0))
    if farthest == _LONGEST:
        raise InputError(f"the host sees {_LONGEST} cut-offs far or more; run on one process.")
    return farthest

"""Energies of hosts in float64, whatever their precision: from their interactions and their isolated atoms."""

import copy
from typing import Any, Protocol, cast

import torch

from phi_equivariant.derivatives import Batch, Output

_EXACT = "exact_atomic_energies"  # beside the buffer, which takes the network's precision: a plain tensor


class HasAtomicEnergies(Protocol):
    """The submodule of a host that holds E0 in eV, (n_heads, n_elements) or (n_elements,)."""

    atomic_energies: torch.Tensor


def run_host(host: torch.nn.Module, data: Batch, **options: Any) -> Output:
    """The output of a model with mace's call signature, its energies in float64: E = E_interaction + Σ_i E0_(Z_i).

    In float32 a sum over isolated atoms of −520,000 eV each leaves nothing of the interactions. The host computes in
    its own precision without E0; energy (n_structures,), node_energy (n_atoms,) and the first of mace's contributions
    have them added.

    Parameters
    ----------
    host: keeps E0 in its submodule ``atomic_energies_fn``; without one its energy is taken as it is
    data: dict with mace's keys
    options: as the host takes them
    """
    if "atomic_energies_fn" not in host._modules:
        return {**host(data, **options)}
    interacting = without_isolated(host)
    isolated = cast(_NoAtomicEnergies, interacting.atomic_energies_fn)
    out: Output = {**interacting(data, **options)}
    if isolated.n_calls == 0:  # the host adds them in another way
        return out
    of_atom = isolated_of_atoms(host, data)  # (n_atoms,)
    energy, of_each, parts = out["energy"], out.get("node_energy"), out.get("contributions")
    assert energy is not None
    of_structure = torch.zeros_like(energy, dtype=torch.float64).index_add(0, data["batch"], of_atom)
    out["energy"] = of_structure + energy
    if of_each is not None:
        out["node_energy"] = of_atom + of_each
    if parts is not None:
        out["contributions"] = torch.cat([(of_structure + parts[:, 0])[:, None], parts[:, 1:].double()], dim=1)
    return out


def without_isolated(host: torch.nn.Module) -> torch.nn.Module:
    """A host whose atoms have no energy alone: a shallow copy, which shares all else with the host."""
    bare = copy.copy(host)
    isolated = _NoAtomicEnergies(len(torch.atleast_2d(_block(host).atomic_energies)))
    bare._modules = {**host._modules, "atomic_energies_fn": isolated}
    return bare


def atomic_energies(host: torch.nn.Module) -> torch.Tensor:
    """E0 of a host's heads and elements in eV, (n_heads, n_elements), float64.

    The numbers that were given, where :func:`keep_exact` kept them and they still are those of the host to its
    precision; else the host's own.
    """
    return energies_of(_block(host))


def energies_of(block: HasAtomicEnergies) -> torch.Tensor:
    """The same from the submodule that holds them."""
    own = torch.atleast_2d(block.atomic_energies.detach())
    exact = getattr(block, _EXACT, None)
    if exact is None or exact.shape != own.shape:
        return own.double()
    exact = exact.to(own.device)
    # A model that was in float32 once has numbers of that precision, whatever its own is now.
    same = (exact.to(own.dtype) == own) | ((own.float() == own) & (exact.float() == own.float()))
    return torch.where(same, exact, own.double())


def keep_exact(host: torch.nn.Module, energies: Any) -> None:
    """Keep E0 in eV, (n_heads, n_elements) or (n_elements,), in float64 with a host of lower precision."""
    setattr(host.atomic_energies_fn, _EXACT, torch.atleast_2d(torch.as_tensor(energies, dtype=torch.float64).cpu()))


def isolated_of_atoms(host: torch.nn.Module, data: Batch) -> torch.Tensor:
    """E0 of each atom in eV, of its structure's head: (n_atoms,), float64."""
    energies, species = atomic_energies(host), data["node_attrs"].argmax(-1)
    if len(energies) == 1 or data.get("head") is None:
        return energies[0, species]
    return energies[data["head"][data["batch"]].long(), species]


def _block(host: torch.nn.Module) -> HasAtomicEnergies:
    return cast(HasAtomicEnergies, host.atomic_energies_fn)


class _NoAtomicEnergies(torch.nn.Module):
    """Stands in the place of a host's isolated atoms for one pass: zeros of the same shape."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.n_calls = n_heads, 0

    def forward(self, node_attrs: torch.Tensor) -> torch.Tensor:
        """(n_atoms, n_elements) → (n_atoms, n_heads)."""
        self.n_calls += 1
        return node_attrs.new_zeros(len(node_attrs), self.n_heads)

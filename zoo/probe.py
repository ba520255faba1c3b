"""A structure to probe models with: two that agree on its energy have the same weights in the same places."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch

from phi_equivariant.host_energy import without_isolated
from phi_equivariant.host_protocol import MaceLike


def interaction_energy(model: torch.nn.Module, numbers: Sequence[int], head: int = 0) -> float:
    """E − ΣE0 in eV of a helix of one atom of each element.

    Parameters
    ----------
    model: mace model
    numbers: atomic numbers, of which the model knows all
    head: index of the model's head
    """
    reference = next(model.parameters())
    host = cast(MaceLike, model)
    table, r_max = host.atomic_numbers.tolist(), float(host.r_max)
    numbers = numbers if len(numbers) > 1 else 2 * list(numbers)
    n = len(numbers)
    step = torch.arange(n, dtype=reference.dtype)
    positions = 0.3 * r_max * torch.stack([torch.cos(1.3 * step), torch.sin(1.3 * step), 0.7 * step], dim=-1)
    edges = (torch.cdist(positions, positions) < r_max).fill_diagonal_(False).nonzero().T
    species = torch.tensor([table.index(number) for number in numbers])
    data = {
        "positions": positions,
        "node_attrs": torch.nn.functional.one_hot(species, len(table)).to(reference.dtype),
        "edge_index": edges,
        "shifts": positions.new_zeros(edges.shape[1], 3),
        "unit_shifts": positions.new_zeros(edges.shape[1], 3),
        "cell": positions.new_zeros(3, 3),
        "batch": torch.zeros(n, dtype=torch.long),
        "ptr": torch.tensor([0, n]),
        "head": torch.tensor([head]),
        **_embedded(model, n, reference.dtype),
    }
    data = {key: value.to(reference.device) for key, value in data.items()}
    # Isolated atoms of thousands of eV would leave a float32 energy no digits for the interaction.
    return float(without_isolated(model)(data, compute_force=False)["energy"][0].detach())


def energy_difference(model: torch.nn.Module, other: torch.nn.Module, heads: Iterable[tuple[int, int]]) -> float:
    """Largest |E − E′|/(1 eV + |E|) over pairs of heads (index in ``model``, index in ``other``).

    ``other`` knows all elements of ``model``.
    """
    numbers = cast(MaceLike, model).atomic_numbers.tolist()
    energies = [(interaction_energy(model, numbers, i), interaction_energy(other, numbers, j)) for i, j in heads]
    differences = torch.tensor([abs(a - b) / (1.0 + abs(a)) for a, b in energies], dtype=torch.float64)
    return float(differences.max())  # nan if one is


def _embedded(model: torch.nn.Module, n_atoms: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The fields that a model with ``embedding_specs`` reads, each at its first class or at zero."""
    fields = {}
    specs: dict[str, dict[str, Any]] = getattr(model, "embedding_specs", None) or {}
    for name, spec in specs.items():
        rows = 1 if spec["per"] == "graph" else n_atoms
        value = torch.full((rows, spec.get("in_dim", 1)), -float(spec.get("offset", 0)), dtype=dtype)
        fields[name] = value.squeeze(-1)
    return fields

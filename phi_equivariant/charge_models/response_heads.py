"""What a charge model needs of every atom: electronegativity, hardness, conductance, polarisability."""

import math
from collections.abc import Sequence

import torch

from phi_equivariant.alpha_net import ScalarHead
from phi_equivariant.elements import electronegativity, hardness, polarisability
from phi_equivariant.errors import InputError

NAMES = ("electronegativity", "hardness", "conductance", "polarisability")


class ResponseHeads(torch.nn.Module):
    """χ in V, η in V/e, c and α in e·Å²/V of every atom, from a head per layer and a term per element.

        χ_i = s · (Σ_t head⁽ᵗ⁾(h_i⁽ᵗ⁾) + κ (χ_Z − χ_C)),   η_i, c_i, α_i = x_Z softplus(t_Z + Σ_t head⁽ᵗ⁾(h_i⁽ᵗ⁾))/ln 2

    The latter are positive whatever the heads give, and start near x_Z: the hardness and polarisability of free atoms,
    and 1 for c. χ starts from Pauling's electronegativities, so that charges start at about 0.2 e.

    Parameters
    ----------
    layer_irreps: irreps of each tapped layer
    atomic_numbers: elements, in the order of ``species``
    hidden: width of the heads
    names: which of the four are wanted
    start_scale: start of s, a parameter where χ is wanted

    Raises
    ------
    InputError
        If a layer has no 0e channel, or a name is not one of the four.
    """

    volts_per_pauling_unit = 5.0  # κ
    size: torch.Tensor

    def __init__(
        self,
        layer_irreps: Sequence[str],
        atomic_numbers: Sequence[int],
        hidden: int,
        names: Sequence[str],
        start_scale: float = 1.0,
    ) -> None:
        super().__init__()
        unknown = [name for name in names if name not in NAMES]
        if unknown or not names:
            raise InputError(f"the names of response heads are {list(names)}; use some of {', '.join(NAMES)}.")
        self.names = tuple(names)
        self.heads = torch.nn.ModuleList(ScalarHead(irreps, hidden, len(names)) for irreps in layer_irreps)
        carbon = electronegativity(6)
        start = {
            "electronegativity": [
                self.volts_per_pauling_unit * (electronegativity(int(z)) - carbon) for z in atomic_numbers
            ],
            "hardness": [hardness(int(z)) for z in atomic_numbers],
            "conductance": [1.0 for _ in atomic_numbers],
            "polarisability": [polarisability(int(z)) for z in atomic_numbers],
        }
        table = torch.tensor([start[name] for name in names], dtype=torch.get_default_dtype())
        positive = torch.tensor([[name != "electronegativity"] for name in names])
        self.register_buffer("size", table.where(positive, torch.ones_like(table)))  # x_Z (n_names, n_elements)
        self.element_term = torch.nn.Parameter(table.where(~positive, torch.zeros_like(table)))
        # Without χ nothing would use it, and processes that train together wait for every parameter's gradient.
        wanted = "electronegativity" in names
        self.scale = torch.nn.Parameter(torch.tensor(float(start_scale))) if wanted else None

    def forward(self, layers: Sequence[torch.Tensor], species: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features of each layer (n_atoms, irreps.dim) and species (n_atoms,) → each name's values (n_atoms,)."""
        total = self.element_term.T[species]  # (n_atoms, n_names)
        for head, features in zip(self.heads, layers, strict=True):
            total = total + head(features)
        found = {}
        for index, name in enumerate(self.names):
            if self.scale is not None and name == "electronegativity":
                found[name] = self.scale * total[:, index]
            else:
                size = self.size[index][species]
                found[name] = size * torch.nn.functional.softplus(total[:, index]) / math.log(2)
        return found

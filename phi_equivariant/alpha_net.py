"""The α-Net: from the host's equivariant node features to one or two scalar fields per atom."""

from collections.abc import Sequence

import torch

from phi_equivariant.elements import electronegativity
from phi_equivariant.errors import InputError
from phi_equivariant.quiet import importing

with importing():
    from e3nn import o3


class ScalarHead(torch.nn.Module):
    """Scalar channels of equivariant features through a small network: s = W₃ silu(W₂ silu(W₁ h₀ₑ) + b₂).

    Parameters
    ----------
    irreps_in: irreps of the node features; only 0e channels are invariant under rotation and reflection, and only they
        are taken
    hidden: width
    out: number of outputs

    Raises
    ------
    InputError
        If the features have no 0e channel.
    """

    start_output = 0.1  # size of the last layer's weights, relative to the usual start

    def __init__(self, irreps_in: str | o3.Irreps, hidden: int, out: int) -> None:
        super().__init__()
        irreps_in = o3.Irreps(irreps_in)
        if irreps_in.count("0e") == 0:
            raise InputError(f"tapped features have irreps {irreps_in}; the α-Net needs at least one 0e channel.")
        self.scalars = o3.Linear(irreps_in, o3.Irreps(f"{hidden}x0e"))
        self.mix = torch.nn.Linear(hidden, hidden)
        self.out = torch.nn.Linear(hidden, out, bias=False)
        with torch.no_grad():
            self.out.weight.mul_(self.start_output)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n_atoms, irreps_in.dim) → (n_atoms, out)."""
        silu = torch.nn.functional.silu
        found: torch.Tensor = self.out(silu(self.mix(silu(self.scalars(features)))))
        return found


class VectorHead(torch.nn.Module):
    """Atomic dipoles from equivariant features: μ_c = Σ_k (m_ck + s_ck) v_k, v = W h₁ₒ, s of a ``ScalarHead``.

    Parameters
    ----------
    irreps_in: irreps of the node features, with 0e and 1o channels
    hidden: width of the scalar head
    channels: number of dipoles per atom
    """

    n_vectors = 8

    def __init__(self, irreps_in: str | o3.Irreps, hidden: int, channels: int) -> None:
        super().__init__()
        self.vectors = o3.Linear(o3.Irreps(irreps_in), o3.Irreps(f"{self.n_vectors}x1o"))
        self.weights = ScalarHead(irreps_in, hidden, channels * self.n_vectors)
        # The scalar head starts small: without m dipoles would begin, and for long stay, near zero.
        self.mixing = torch.nn.Parameter(torch.randn(channels, self.n_vectors) / self.n_vectors**0.5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n_atoms, irreps_in.dim) → (n_atoms, channels, 3)."""
        vectors = self.vectors(features).unflatten(-1, (self.n_vectors, 3))
        found: torch.Tensor = (self.mixing + self.weights(features).unflatten(-1, (-1, self.n_vectors))) @ vectors
        return found


class AlphaNet(torch.nn.Module):
    """Per-atom fields summed over the host's layers, plus a term per element in channel 0.

        a_i = s · (Σ_t head⁽ᵗ⁾(h_i⁽ᵗ⁾) + ε_{Z_i}),   ε started at κ (χ_C − χ_Z)

    The energy does not change when all fields change sign: ε, from Pauling's electronegativities χ, settles that
    oxygen is the negative one.

    Parameters
    ----------
    layer_irreps: irreps of each tapped layer
    atomic_numbers: elements, in the order of ``species``
    n_fields: 1 (a) or 2 (a and b)
    channels, hidden: see ``PhiConfig``
    element_scale: κ, in units of the field per Pauling unit
    start_scale: start of s
    dipoles: whether every layer with 1o channels has a ``VectorHead`` too
    charges: whether channel 0, and with it the term per element, is among the fields; without it they are those of the
        other channels

    Raises
    ------
    InputError
        If a layer has no 0e channel, there is no layer, or, for dipoles, none with 1o channels.
    """

    def __init__(
        self,
        layer_irreps: Sequence[str | o3.Irreps],
        atomic_numbers: Sequence[int],
        n_fields: int,
        channels: int,
        hidden: int,
        element_scale: float,
        start_scale: float,
        dipoles: bool = False,
        charges: bool = True,
    ) -> None:
        super().__init__()
        if not layer_irreps:
            raise InputError("no layer of the host is tapped; give taps={'submodule.name': irreps}.")
        self.n_fields, self.channels = n_fields, channels if charges else channels - 1
        self.heads = torch.nn.ModuleList(
            ScalarHead(irreps, hidden, n_fields * self.channels) for irreps in layer_irreps if self.channels
        )
        self.vector_heads = torch.nn.ModuleDict()
        if dipoles:
            self.vector_heads.update(
                {
                    str(layer): VectorHead(irreps, hidden, channels)
                    for layer, irreps in enumerate(layer_irreps)
                    if o3.Irreps(irreps).count("1o")
                }
            )
            if not self.vector_heads:
                given = ", ".join(map(str, layer_irreps))
                raise InputError(
                    f"multipoles is 1, but no tapped layer has 1o channels: {given}. Choose a host with vectors in a "
                    "layer that is tapped, such as hidden_irreps='32x0e+32x1o', or multipoles=0."
                )
        carbon = electronegativity(6)
        start = torch.tensor([element_scale * (carbon - electronegativity(int(z))) for z in atomic_numbers])
        self.element_term = torch.nn.Parameter(start.to(torch.get_default_dtype())) if charges else None
        self.scale = torch.nn.Parameter(torch.tensor(float(start_scale)))

    def forward(self, layers: Sequence[torch.Tensor], species: torch.Tensor) -> torch.Tensor:
        """Features of each layer (n_atoms, irreps.dim) and species (n_atoms,) → (n_atoms, n_fields, channels)."""
        if not self.heads:
            return layers[0].new_zeros((len(species), self.n_fields, 0))
        total = _sum([head(features) for head, features in zip(self.heads, layers, strict=True)])
        if self.element_term is None:
            return self.scale * total.reshape(-1, self.n_fields, self.channels)
        first = torch.zeros(self.channels, dtype=total.dtype, device=total.device)
        first[0] = 1.0
        element = self.element_term[species][:, None, None] * first  # (n_atoms, 1, channels)
        return self.scale * (total.reshape(-1, self.n_fields, self.channels) + element)

    def dipoles(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Features of each layer (n_atoms, irreps.dim) → atomic dipoles (n_atoms, channels, 3), in e·Å."""
        return self.scale * _sum([head(layers[int(layer)]) for layer, head in self.vector_heads.items()])


def _sum(values: Sequence[torch.Tensor]) -> torch.Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total

"""PaiNN, message passing with scalars and vectors (arXiv 2102.03150), and its type of host."""

import torch

from phi_equivariant.batching import segment_sum
from phi_equivariant.derivatives import Batch
from phi_equivariant.taps import Tap
from zoo.bounds import Count, Elements, Energies, Layers, Length
from zoo.energy_model import EnergyModel
from zoo.hosts import EnergyModelHost
from zoo.nequip import RadialBasis

Features = tuple[torch.Tensor, torch.Tensor]  # s (n_atoms, F) and v (n_atoms, 3, F)


def _dense(channels: int, n_out: int) -> torch.nn.Sequential:
    """F → F → n_out with one activation."""
    return torch.nn.Sequential(torch.nn.Linear(channels, channels), torch.nn.SiLU(), torch.nn.Linear(channels, n_out))


class Message(torch.nn.Module):
    """What neighbours say, eqs. 7 and 8 of the paper.

        (a, b, c)_ij = φ(s_j) ∘ W(r_ij),   Δs_i = Σ_j a_ij,   Δv_i = Σ_j (v_j ∘ b_ij + r̂_ij c_ij)

    W is linear in radial functions that end at the cut-off, and has no bias: nothing is left of a message there.

    Parameters
    ----------
    channels: F
    num_bessel: number of radial functions
    """

    def __init__(self, channels: int, num_bessel: int) -> None:
        super().__init__()
        self.scalar_map = _dense(channels, 3 * channels)
        self.filters = torch.nn.Linear(num_bessel, 3 * channels, bias=False)

    def forward(
        self, features: Features, edge_index: torch.Tensor, directions: torch.Tensor, radial: torch.Tensor
    ) -> Features:
        """Features, edges (2, n_edges), r̂ (n_edges, 3) and radial functions (n_edges, num_bessel) → Δs, Δv."""
        (scalars, vectors), (sender, receiver) = features, edge_index
        kept, passed, along = (self.scalar_map(scalars)[sender] * self.filters(radial)).chunk(3, dim=-1)
        turned = vectors[sender] * passed[:, None] + directions[:, :, None] * along[:, None]
        n = len(scalars)
        return segment_sum(kept, receiver, n), segment_sum(turned.flatten(1), receiver, n).view_as(vectors)


class Update(torch.nn.Module):
    """What an atom makes of its own features, eqs. 9 and 10 of the paper.

        (a, b, c)_i = φ(s_i, |Vv_i|),   Δs_i = a_i + b_i ∘ ⟨Uv_i, Vv_i⟩,   Δv_i = c_i ∘ Uv_i

    |·| is (|·|² + ε²)^(1/2): a norm has a kink where symmetry, or the first layer, makes a vector vanish.

    Parameters
    ----------
    channels: F
    """

    epsilon = 0.1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.maps = torch.nn.Linear(channels, 2 * channels, bias=False)  # U and V
        self.inner = torch.nn.Linear(2 * channels, channels)
        self.outer = torch.nn.Linear(channels, 3 * channels)

    def forward(self, features: Features) -> Features:
        """s and v → Δs, Δv."""
        scalars, vectors = features
        left, right = self.maps(vectors).chunk(2, dim=-1)  # (n_atoms, 3, F)
        norms = (right.square().sum(1) + self.epsilon**2).sqrt()
        hidden = torch.nn.functional.silu(self.inner(torch.cat([scalars, norms], dim=-1)))
        own, product, scale = self.outer(hidden).chunk(3, dim=-1)
        return own + product * (left * right).sum(1), scale[:, None] * left


class Layer(torch.nn.Module):
    """A message and an update, each added to the features."""

    def __init__(self, channels: int, num_bessel: int) -> None:
        super().__init__()
        self.message, self.update = Message(channels, num_bessel), Update(channels)

    def forward(
        self, features: Features, edge_index: torch.Tensor, directions: torch.Tensor, radial: torch.Tensor
    ) -> Features:
        """s and v → s and v."""
        for change in (lambda f: self.message(f, edge_index, directions, radial), self.update):
            scalars, vectors = change(features)
            features = features[0] + scalars, features[1] + vectors
        return features


class PaiNN(EnergyModel):
    """PaiNN: ε_i from the scalars of the last layer.

    Radial functions end at the cut-off with two continuous derivatives (those of ``zoo.nequip.RadialBasis``); the
    paper's cosine has one.

    Parameters
    ----------
    atomic_numbers, atomic_energies, r_max, atomic_inter_scale, atomic_inter_shift, train_scale_shift: see
        ``EnergyModel``
    hidden_channels: F, scalars and as many vectors
    num_interactions: number of layers
    num_bessel, num_polynomial_cutoff: of the radial functions

    Raises
    ------
    InputError
        As ``EnergyModel`` does.

    Source: arXiv 2102.03150.
    """

    def __init__(
        self, atomic_numbers: Elements, atomic_energies: Energies, r_max: Length = 5.0, hidden_channels: Count = 64,
        num_interactions: Layers = 3, num_bessel: Count = 20, num_polynomial_cutoff: Count = 6,
        atomic_inter_scale: Energies = 1.0, atomic_inter_shift: Energies = 0.0, train_scale_shift: bool = False,
    ) -> None:  # fmt: skip
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(
            atomic_numbers, atomic_energies, r_max, atomic_inter_scale, atomic_inter_shift, train_scale_shift
        )
        self.arguments = arguments  # what a saved model is built from again
        self.channels = hidden_channels
        self.register_buffer("num_interactions", torch.tensor(num_interactions))
        self.radial_basis = RadialBasis(r_max, num_bessel, num_polynomial_cutoff)
        self.embedding = torch.nn.Embedding(len(atomic_numbers), hidden_channels)
        self.layers = torch.nn.ModuleList(Layer(hidden_channels, num_bessel) for _ in range(num_interactions))
        self.readout = _dense(hidden_channels, 1)

    @property
    def phi_taps(self) -> dict[str, list[Tap]]:
        """{"submodule.name": taps} of the node features that Φ reads."""
        both = [Tap(f"{self.channels}x0e", element=0), Tap(f"{self.channels}x1o", element=1, layout="ir_mul")]
        return {f"layers.{i}": both for i in range(len(self.layers))}

    def atom_terms(self, data: Batch, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ε (n_atoms,) and the scalars of the last layer (n_atoms, F)."""
        lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        directions, radial = vectors / lengths, self.radial_basis(lengths)
        scalars = self.embedding(data["node_attrs"].argmax(-1))
        features = scalars, scalars.new_zeros(len(scalars), 3, self.channels)
        for layer in self.layers:
            features = layer(features, data["edge_index"], directions, radial)
        return self.readout(features[0]).squeeze(-1), features[0]


class PaiNNHost(EnergyModelHost):
    """``PaiNN``."""

    model_class = PaiNN

"""NequIP, an E(3)-equivariant message-passing potential (arXiv 2101.03164), on e3nn."""

import math
from collections.abc import Sequence

import torch

from phi_equivariant.batching import segment_sum
from phi_equivariant.derivatives import Batch
from phi_equivariant.errors import InputError
from phi_equivariant.quiet import importing, quiet
from zoo.bounds import Count, Degree, Elements, Energies, Irreps, Layers, Length, Neighbours, Widths
from zoo.energy_model import EnergyModel

with importing():
    from e3nn import o3
    from e3nn.nn import FullyConnectedNet, Gate

ACTIVATIONS = {1: torch.nn.functional.silu, -1: torch.tanh}  # of scalars by parity: odd ones must stay odd


class RadialBasis(torch.nn.Module):
    """Bessel functions under a polynomial envelope that ends at the cut-off with two continuous derivatives.

        b_n(r) = 2/r_c · sin(k_n r)/(r/r_c) · u(r/r_c),   k_n = nπ/r_c at the start, learnable
        u(x) = 1 − (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) − p(p+1)/2 x^(p+2),   x < 1

    Parameters
    ----------
    r_max: cut-off r_c in Å
    num_bessel: number of functions
    num_polynomial_cutoff: p
    """

    def __init__(self, r_max: float, num_bessel: int, num_polynomial_cutoff: int) -> None:
        super().__init__()
        self.r_max, self.p = float(r_max), int(num_polynomial_cutoff)
        self.wave_numbers = torch.nn.Parameter(math.pi / self.r_max * torch.arange(1.0, num_bessel + 1))

    def forward(self, lengths: torch.Tensor) -> torch.Tensor:
        """(n_edges, 1) in Å → (n_edges, num_bessel)."""
        p, x = self.p, lengths / self.r_max
        envelope = 1 + x**p * (-(p + 1) * (p + 2) / 2 + x * (p * (p + 2) - x * p * (p + 1) / 2))
        return torch.sin(self.wave_numbers * lengths) * (2 / self.r_max * envelope * (x < 1) / x)


class Convolution(torch.nn.Module):
    """m_i = Σ_j R_ij ⊙ (h_j ⊗ Y_ij): every channel of the neighbours coupled with spherical harmonics, and added up.

    ⊗ runs over all paths (l, l_Y) → l'; R has a weight for each path and channel. Written out, because
    ``o3.TensorProduct`` cuts slices out of edge arrays, and the gradient of each slice fills an array of all edges and
    channels: half of a training step.

    Parameters
    ----------
    irreps_in: irreps of h
    edge_irreps: irreps of Y
    wanted: irreps l' to keep
    """

    couplings: torch.Tensor  # (edge_irreps.dim, Σ over groups of paths · dim_out · dim_in)

    def __init__(self, irreps_in: o3.Irreps, edge_irreps: o3.Irreps, wanted: Sequence[o3.Irrep]) -> None:
        super().__init__()
        self.irreps_in = irreps_in
        self.groups: list[tuple[int, int, int, int, int]] = []  # block, channels, paths, dim_out, dim_in
        couplings, irreps_out = [], []
        for ir_out in sorted(set(wanted)):
            for block, (channels, ir_in) in enumerate(irreps_in):
                # (edge_irreps.dim, ir_out.dim, ir_in.dim) of each path; outputs have the variance of a channel.
                paths = [
                    ir_out.dim**0.5 * _rows(o3.wigner_3j(ir_Y.l, ir_out.l, ir_in.l), where, edge_irreps.dim)
                    for (_, ir_Y), where in zip(edge_irreps, edge_irreps.slices(), strict=True)
                    if ir_out in ir_in * ir_Y
                ]
                if paths:
                    couplings.append(torch.stack(paths, dim=1).flatten(1))
                    self.groups.append((block, channels, len(paths), ir_out.dim, ir_in.dim))
                    irreps_out.append((channels * len(paths), ir_out))
        self.irreps_out = o3.Irreps(irreps_out)
        self.n_weights = self.irreps_out.num_irreps
        self.register_buffer("couplings", torch.cat(couplings, dim=1))

    def forward(
        self,
        features: torch.Tensor,
        edge_attrs: torch.Tensor,
        weights: torch.Tensor,
        sender: torch.Tensor,
        receiver: torch.Tensor,
    ) -> torch.Tensor:
        """Features (n_atoms, irreps_in.dim), Y (n_edges, edge_irreps.dim), R (n_edges, n_weights) → (n_atoms,
        irreps_out.dim)."""
        # On edges channels stand last, so that what is done to all channels alike runs along memory.
        blocks = features.split([ir.dim for ir in self.irreps_in], dim=-1)
        blocks = [
            _swap(block, ir.mul).index_select(0, sender) for block, ir in zip(blocks, self.irreps_in, strict=True)
        ]
        matrices = (edge_attrs @ self.couplings).split([p * b * a for _, _, p, b, a in self.groups], dim=-1)
        weights = weights.split([p * channels for _, channels, p, _, _ in self.groups], dim=-1)
        sums, n = [], len(sender)
        for (block, channels, p, dim_out, dim_in), matrix, weight in zip(self.groups, matrices, weights, strict=True):
            matrix, weight = matrix.reshape(n, p * dim_out, dim_in), weight.reshape(n, p, 1, channels)
            inputs = blocks[block].view(n, dim_in, channels)
            if dim_in == 1:  # a product without a sum: weights go to the smaller factor
                paths = matrix.view(n, p, dim_out, 1) * (weight * inputs[:, None])
            else:
                paths = (matrix @ inputs).view(n, p, dim_out, channels) * weight
            total = segment_sum(paths.flatten(1), receiver, len(features))  # (n_atoms, p · dim_out · channels)
            sums.append(total.view(-1, p, dim_out, channels).mT.flatten(1))
        return torch.cat(sums, dim=-1)


class Interaction(torch.nn.Module):
    """One layer: a convolution over neighbours, a self-connection per element, a gate.

        h_i ← gate(2^(−1/2) (W₂ n̄^(−1/2) Σ_j R(r_ij) ⊙ (W₁ h_j ⊗ Y(r̂_ij)) + S_(Z_i) h_i)),   R a network of the distance

    The square roots keep the variance of a channel near 1 from layer to layer: a gate multiplies features with each
    other, so that without them a stack of layers starts too small to learn, or explodes.

    Parameters
    ----------
    irreps_in: irreps of the node features h
    irreps_target: irreps wanted; those that no path leads to are left out of ``irreps_out``
    edge_irreps: irreps of Y
    elements: irreps of the elements Z, one-hot but for a factor that gives them variance 1
    radial_MLP: widths of R's network, first the number of radial functions, without the last
    avg_num_neighbors: n̄
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_target: o3.Irreps,
        edge_irreps: o3.Irreps,
        elements: o3.Irreps,
        radial_MLP: Sequence[int],
        avg_num_neighbors: float,
    ) -> None:
        super().__init__()
        products = {ir for _, a in irreps_in for _, b in edge_irreps for ir in a * b}
        scalars = o3.Irreps([(mul, ir) for mul, ir in irreps_target if ir in products and ir.l == 0])
        gated = o3.Irreps([(mul, ir) for mul, ir in irreps_target if ir in products and ir.l > 0])
        gates = o3.Irreps([(gated.num_irreps, "0e")] if gated else [])
        acts = [ACTIVATIONS[ir.p] for _, ir in scalars]
        self.gate = Gate(scalars, acts, gates, [ACTIVATIONS[1] for _ in gates], gated)
        self.irreps_out = self.gate.irreps_out

        self.linear_up = o3.Linear(irreps_in, irreps_in)
        self.convolution = Convolution(irreps_in, edge_irreps, [ir for _, ir in self.gate.irreps_in])
        self.radial = FullyConnectedNet([*radial_MLP, self.convolution.n_weights], torch.nn.functional.silu)
        self.linear_down = o3.Linear(self.convolution.irreps_out, self.gate.irreps_in)
        self.self_connection = o3.FullyConnectedTensorProduct(irreps_in, elements, self.gate.irreps_in)
        self.normalisation = float(avg_num_neighbors) ** -0.5

    def forward(
        self,
        features: torch.Tensor,
        node_attrs: torch.Tensor,
        edge_attrs: torch.Tensor,
        edge_feats: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        """Node features (n_atoms, irreps_in.dim) → (n_atoms, irreps_out.dim)."""
        sender, receiver = edge_index
        message = self.convolution(self.linear_up(features), edge_attrs, self.radial(edge_feats), sender, receiver)
        message = self.linear_down(message * self.normalisation)
        return self.gate((message + self.self_connection(features, node_attrs)) * 0.5**0.5)


class NequIP(EnergyModel):
    """NequIP: ε_i = w·h_i from the scalars of the last layer.

    Parameters
    ----------
    atomic_numbers, atomic_energies, r_max: see ``EnergyModel``, also for the last three
    hidden_irreps: node features, e.g. ``32x0e+32x1o+32x2e``, or with both parities ``32x0e+32x0o+32x1e+32x1o``
    num_interactions: number of layers; the last one keeps scalars only
    max_ell: highest degree of the spherical harmonics; that of ``hidden_irreps`` where None
    parity: whether features know reflections. Without, all irreps are written even (``32x0e+32x1e``) and mirror images
        may differ in energy.
    num_bessel, num_polynomial_cutoff: see ``RadialBasis``
    radial_MLP: hidden widths of the radial networks
    avg_num_neighbors: mean number of neighbours in the training set

    Raises
    ------
    InputError
        For irreps that cannot be used, and as ``EnergyModel`` does.
    """

    @quiet()
    def __init__(
        self,
        atomic_numbers: Elements,
        atomic_energies: Energies,
        r_max: Length = 5.0,
        hidden_irreps: Irreps = "32x0e+32x1o+32x2e",
        num_interactions: Layers = 4,
        max_ell: Degree | None = None,
        parity: bool = True,
        num_bessel: Count = 8,
        num_polynomial_cutoff: Count = 6,
        radial_MLP: Widths = (64, 64),
        avg_num_neighbors: Neighbours = 1.0,
        atomic_inter_scale: Energies = 1.0,
        atomic_inter_shift: Energies = 0.0,
        train_scale_shift: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(
            atomic_numbers, atomic_energies, r_max, atomic_inter_scale, atomic_inter_shift, train_scale_shift
        )
        if num_interactions < 1:
            raise InputError(f"num_interactions is {num_interactions!r}; give 1 or more.")
        self.arguments = arguments  # what a saved model is built from again
        hidden = _check_irreps(hidden_irreps, parity)
        self.register_buffer("num_interactions", torch.tensor(num_interactions))
        edge_irreps = o3.Irreps.spherical_harmonics(hidden.lmax if max_ell is None else max_ell, p=-1 if parity else 1)
        self.spherical_harmonics = o3.SphericalHarmonics(edge_irreps, normalize=True, normalization="component")
        self.radial_basis = RadialBasis(r_max, num_bessel, num_polynomial_cutoff)
        irreps = scalars = o3.Irreps([(hidden.count("0e"), "0e")])
        elements = o3.Irreps([(len(atomic_numbers), "0e")])
        self.embedding = o3.Linear(elements, scalars)
        self.interactions = torch.nn.ModuleList()
        for target in [hidden] * (num_interactions - 1) + [scalars]:
            widths = [num_bessel, *radial_MLP]
            self.interactions.append(Interaction(irreps, target, edge_irreps, elements, widths, avg_num_neighbors))
            irreps = self.interactions[-1].irreps_out
        self.readout = o3.Linear(irreps, "0e")

    exchanges_ghosts = True

    @property
    def phi_taps(self) -> dict[str, o3.Irreps]:
        """{"submodule.name": irreps} of the node features that Φ reads."""
        return {f"interactions.{i}": layer.irreps_out for i, layer in enumerate(self.interactions)}

    def atom_terms(self, data: Batch, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ε (n_atoms,) and the features of all layers side by side (n_atoms, any)."""
        node_attrs = data["node_attrs"] * data["node_attrs"].shape[1] ** 0.5  # of variance 1, as e3nn's maps expect
        edge_attrs = self.spherical_harmonics(vectors)  # (n_edges, (max_ell + 1)²)
        edge_feats = self.radial_basis(torch.linalg.vector_norm(vectors, dim=-1, keepdim=True))  # (n_edges, num_bessel)
        features = self.embedding(node_attrs)
        layers: list[torch.Tensor] = []
        exchange = data.get("exchange_ghosts")  # where other processes have the features of some atoms
        for interaction in self.interactions:
            if layers and exchange is not None:
                features = exchange(features)
            features = interaction(features, node_attrs, edge_attrs, edge_feats, data["edge_index"])
            layers.append(features)
        return self.readout(features).squeeze(-1), torch.cat(layers, dim=-1)


def _check_irreps(hidden_irreps: str, parity: bool) -> o3.Irreps:
    """Irreps of the node features, one block of each kind."""
    try:
        irreps = o3.Irreps(hidden_irreps).sort().irreps.simplify()
    except ValueError as error:
        raise InputError(
            f"hidden_irreps is {hidden_irreps!r}, which are not irreps ({error}); write '32x0e+32x1o'."
        ) from error
    if irreps.count("0e") == 0:
        raise InputError(f"hidden_irreps is {hidden_irreps}; without a 0e channel there is no energy to read.")
    if not parity and any(ir.p == -1 for _, ir in irreps):
        even = "+".join(f"{mul}x{ir.l}e" for mul, ir in irreps)
        raise InputError(f"hidden_irreps is {hidden_irreps} with parity=False; write all irreps even, such as {even}.")
    return irreps


def _swap(block: torch.Tensor, channels: int) -> torch.Tensor:
    """(n_atoms, channels · dim) → (n_atoms, dim · channels)."""
    return block.view(len(block), channels, -1).mT.flatten(1)


def _rows(block: torch.Tensor, where: slice, n_rows: int) -> torch.Tensor:
    """``block`` as the rows ``where`` of an array that is zero elsewhere."""
    rows = block.new_zeros(n_rows, *block.shape[1:])
    rows[where] = block
    return rows

"""The host: its network, the kernels that compute it, and the trained model that it may start from."""

import dataclasses
from functools import partial
from typing import Any

from phi_equivariant.errors import InputError
from training.run.option import ABOVE_ZERO, RunPart, option

architecture = partial(option, architecture=True)

_EXAMPLE = "{'total_spin': {'type': 'categorical', 'per': 'graph', 'num_classes': 5, 'emb_dim': 8}}"
_SIZES = {"categorical": "num_classes", "continuous": "in_dim"}
_ENTRIES = ("type", "per", *_SIZES.values(), "emb_dim", "offset", "use_bias", "key")  # that mace reads


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Host(RunPart):
    """The network that Φ is attached to. An option that a model of the zoo does not have is None."""

    model: str = option(
        "MACE, ScaleShiftMACE, or a size of the zoo: phi-mace-small, …; options of the host then change its size"
    )
    r_max: float = architecture("cut-off of the neighbour list, Å")
    radial_type: str | None = architecture("radial basis: bessel, gaussian or chebyshev")
    num_radial_basis: int | None = architecture("number of its functions")
    num_cutoff_basis: int | None = architecture("p of the polynomial cut-off")
    pair_repulsion: bool | None = architecture("add the repulsion of Ziegler, Biersack and Littmark")
    distance_transform: str | None = architecture("of the distances before the radial basis: Agnesi or Soft")
    apply_cutoff: bool | None = architecture("multiply the radial basis by the cut-off")
    use_last_readout_only: bool | None = architecture("only the readout of the last layer")
    use_embedding_readout: bool | None = architecture("an energy per atom from element and embedding_specs alone")
    embedding_specs: dict[str, Any] | None = architecture("entries of the files that the features take as inputs")
    interaction: str | None = architecture("class of the interaction blocks")
    interaction_first: str | None = architecture("class of the first interaction block")
    max_ell: int | None = architecture("highest l of the spherical harmonics")
    correlation: int | None = architecture("order of the products of features, body order minus one")
    use_reduced_cg: bool | None = architecture("reduced basis of the products (needs cuequivariance)")
    use_so3: bool | None = architecture("features without parity")
    use_agnostic_product: bool | None = architecture("products whose weights do not depend on the element")
    num_interactions: int | None = architecture("number of layers")
    MLP_irreps: str | None = architecture("hidden irreps of the last readout")
    radial_MLP: str | None = architecture("widths of the radial network")
    hidden_irreps: str | None = architecture("irreps of the hidden features, such as 64x0e+64x1o")
    edge_irreps: str | None = architecture("irreps of the edges, those of the features by default")
    use_edge_irreps_first: bool | None = architecture("use edge_irreps in the first layer too")
    num_channels: int | None = architecture("channels per irrep, in place of hidden_irreps")
    max_L: int | None = architecture("highest l of the features, in place of hidden_irreps")
    gate: str | None = architecture("non-linearity of the last readout: silu, tanh, abs or None")
    freeze: int | None = option(
        "layers of the host that are not trained, as in mace: 0 none, 1 to 4 the embedding, from 5 interactions too, "
        "from 6 products, 7 readouts"
    )
    enable_cueq: bool = option("train with cuequivariance's kernels; the saved model is an e3nn one")
    only_cueq: bool = option("build the host in cuequivariance's layout from the start")
    enable_oeq: bool = option("train with openequivariance's kernels; the saved model is an e3nn one")
    foundation_model: str | None = option(
        "start from a trained mace model: a name of the zoo, a folder of phi-mace-train or a .model file"
    )
    trust_pickle: bool = option("allow a .model file, a pickle that can run code, to be read")
    foundation_head: str | None = option("head of the trained model to start from")
    foundation_model_readout: bool = option(
        "a flag: start with fresh readouts, not the trained model's (mace does not read it)"
    )
    foundation_model_elements: bool = option("keep all elements of the trained model")
    foundation_filter_elements: bool = option(
        "with foundation_model: keep only the elements of the data (mace's default)"
    )

    def __post_init__(self) -> None:
        self.expect(ABOVE_ZERO, "r_max", "num_interactions", "num_radial_basis", "num_cutoff_basis", "correlation")
        if self.embedding_specs is not None:
            check_specs(self.embedding_specs)
        if self.freeze is not None and not 0 <= self.freeze <= 7:
            raise InputError(f"--freeze: expected 0 (nothing) to 7, got {self.freeze}.")
        if self.enable_oeq and len(self.kernels) > 1:
            raise InputError(f"--enable_oeq and --{self.kernels[0]} are both given; choose one kind of kernels.")
        if self.foundation_model is None and self.use_last_readout_only and self.num_interactions == 1:
            raise InputError("--use_last_readout_only: with one interaction no readout would be left. Leave it out.")

    @classmethod
    def architecture(cls) -> list[str]:
        """Names of the options that describe the network."""
        return [field.name for field in cls.options() if field.metadata["architecture"]]

    @property
    def kernels(self) -> list[str]:
        """The options that ask for faster kernels."""
        return [name for name in ("enable_cueq", "only_cueq", "enable_oeq") if getattr(self, name)]

    @property
    def embeddings(self) -> dict[str, Any]:
        """``embedding_specs``, empty where there are none."""
        return self.embedding_specs or {}


def check_specs(specs: object) -> None:
    """Find out whether ``--embedding_specs`` is what mace builds embeddings from.

    Raises InputError.
    """
    if not isinstance(specs, dict) or not all(isinstance(spec, dict) for spec in specs.values()):
        raise InputError(f"--embedding_specs: expected a specification by name as in {_EXAMPLE}, got {specs!r}.")
    for name, spec in specs.items():
        where = f"--embedding_specs: {name}: "
        if unknown := sorted(set(spec) - set(_ENTRIES)):
            raise InputError(f"{where}unknown entry {unknown[0]!r}; valid are {', '.join(_ENTRIES)}.")
        for key, choices in (("type", tuple(_SIZES)), ("per", ("graph", "atom"))):
            if spec.get(key) not in choices:
                raise InputError(f"{where}{key} is {spec.get(key)!r}; expected {' or '.join(choices)}.")
        for key in (_SIZES[spec["type"]], "emb_dim"):
            if type(spec.get(key)) is not int or spec[key] < 1:
                raise InputError(f"{where}{key} is {spec.get(key)!r}; expected a whole number above zero.")
        if spec["per"] == "graph" and spec.get("in_dim", 1) != 1:
            raise InputError(
                f"{where}in_dim is {spec['in_dim']}, but mace reads one number per structure. Give each component a "
                "specification of its own, or per: atom."
            )

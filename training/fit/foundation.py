"""Starting from a trained model: ``--foundation_model`` and what goes with it."""

import copy
import dataclasses
from pathlib import Path

import torch

from phi_equivariant import PhiPotential, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.host_energy import atomic_energies
from phi_equivariant.weights import load_model
from training import mace_interface
from zoo.mace_host import MaceHost, read_model

#: Options that act with --foundation_model only, and the values that say nothing.
DEPENDENT = {
    "foundation_head": None,
    "foundation_model_readout": True,
    "foundation_model_elements": False,
    "foundation_filter_elements": True,
    "trust_pickle": False,
}
#: Options that the trained model decides, and what its description calls them where it has another name.
ARCHITECTURE = {
    "num_radial_basis": "num_bessel",
    "num_cutoff_basis": "num_polynomial_cutoff",
    "interaction": "interaction_cls",
    "interaction_first": "interaction_cls_first",
    **{
        name: name
        for name in (
            *("r_max", "radial_type", "distance_transform", "pair_repulsion", "apply_cutoff", "max_ell", "correlation"),
            *("use_last_readout_only", "use_embedding_readout", "embedding_specs", "use_reduced_cg", "use_so3"),
            *("use_agnostic_product", "num_interactions", "MLP_irreps", "radial_MLP", "hidden_irreps", "edge_irreps"),
            *("use_edge_irreps_first", "num_channels", "max_L", "gate", "avg_num_neighbors"),
        )
    },
}
#: Options about statistics of the training set, which a trained model does not need.
STATISTICS = {"scaling": "rms_forces_scaling", "mean": None, "std": None, "compute_avg_num_neighbors": True}
#: Tensors of Φ with a row per element.
PER_ELEMENT = ("alpha_net.element_term", "operator.width_logit")


@dataclasses.dataclass
class Foundation:
    """A trained model to start from.

    path : where it was read; model : a ``ScaleShiftMACE`` with one head, in evaluation mode; phi : the ``PhiModule``
    that was trained with it, or None.
    """

    path: str
    model: torch.nn.Module
    phi: torch.nn.Module | None

    @property
    def atomic_numbers(self):
        """Elements that the model knows, ascending."""
        return sorted(self.model.atomic_numbers.tolist())

    @property
    def energies(self):
        """{Z: eV} of the isolated atoms."""
        values = atomic_energies(self.model)[0]
        return dict(zip(self.model.atomic_numbers.tolist(), values.tolist(), strict=True))

    @property
    def potential(self):
        """The whole trained model: a copy of the host, with its Φ where there is one."""
        host = copy.deepcopy(self.model)
        if self.phi is None:
            return host
        potential = attach_phi(host, self.phi.config)
        potential.phi.load_state_dict(self.phi.state_dict())
        return potential.eval()

    def line(self):
        """What is started from, for the log."""
        elements = f"{len(self.atomic_numbers)} elements, cut-off {float(self.model.r_max):g} Å"
        return f"starting from {self.path}: {elements}{', with its Φ' if self.phi is not None else ''}"

    def choose_elements(self, found, options):
        """Elements of the new model: those of the data (or of ``--atomic_numbers``), or all of the trained model.

        Raises
        ------
        InputError
            If the trained model does not know one of them.
        """
        if unknown := sorted(set(found) - set(self.atomic_numbers)):
            raise InputError(
                f"--foundation_model: the data hold atomic number {', '.join(map(str, unknown))}, which {self.path} "
                f"does not know; it knows {self.atomic_numbers}. Take a model that was trained on these elements."
            )
        everything = options.foundation_model_elements or not options.foundation_filter_elements
        return self.atomic_numbers if everything else sorted(found)


def check_options(run):
    """Refuse options of fine-tuning that would have no effect.

    Raises
    ------
    InputError
    """
    args = run.args
    if args.multiheads_finetuning and "multiheads_finetuning" in run.given:
        raise InputError(
            "--multiheads_finetuning: replay of the foundation model's data is not done here; phi-mace-train "
            "fine-tunes on the new data alone. Set it to False, or leave it out."
        )
    if args.foundation_model is None:
        for name, silent in DEPENDENT.items():
            if getattr(args, name) != silent:
                raise InputError(f"--{name} acts with --foundation_model only; give one, or leave it out.")
        if run.phi is not None and run.phi.host.freeze_host:
            raise InputError(
                "phi: freeze_host trains Φ alone, on a host that has not learned anything yet. Give a trained one by "
                "--foundation_model, or leave freeze_host out."
            )
        return
    for name, silent in STATISTICS.items():
        if name in run.given and getattr(args, name) != silent:
            raise InputError(
                f"--{name}: the model of --foundation_model keeps its own scale, shift and avg_num_neighbors. Leave "
                f"{name} out."
            )
    if args.freeze and run.phi is not None and run.phi.host.freeze_host:
        raise InputError("--freeze: phi: freeze_host freezes all of the host already; give one of the two.")


def read(run):
    """The trained model that a run starts from, or None; its architecture becomes that of the run's options.

    Raises
    ------
    InputError
        If it cannot be read, is of a kind that is not trained here, or options say that it should be another.
    """
    args = run.args
    if args.foundation_model is None:
        return None
    try:
        model = _load(args)
        phi = None
        if isinstance(model, PhiPotential):
            phi = model.phi
            _check_phi(phi, run.phi, args.foundation_model)
            model = model.detach()
        if not MaceHost.matches(model):
            raise InputError(f"{args.foundation_model} holds a {type(model).__name__}, no mace model.")
        model = mace_interface.single_head(model, args.foundation_head)
    except InputError as error:
        raise InputError(f"--foundation_model: {error}") from error
    model = model.to(torch.get_default_dtype()).eval()
    _settle_architecture(run, MaceHost.describe(model))
    return Foundation(str(args.foundation_model), model, None if phi is None else phi.to(torch.get_default_dtype()))


def _load(args):
    path = Path(args.foundation_model).expanduser()
    if path.is_dir():
        return load_model(path)
    if not path.exists() and args.foundation_model in mace_interface.names_of_downloads():
        raise InputError(
            f"{args.foundation_model} is a model that mace downloads, a pickle without a checksum. Download it "
            "yourself (mace's ase calculators leave theirs in ~/.cache/mace), and give its path and --trust_pickle."
        )
    return read_model(path, args.trust_pickle)


def _check_phi(phi, settings, path):
    """A model that was trained with Φ goes on with the same Φ."""
    own = phi.config.to_dict()
    own.pop("init")
    wanted = {} if settings is None else settings.config.to_dict()
    differing = [f"{name}: {value}" for name, value in own.items() if wanted.get(name, value) != value]
    if settings is None or differing:
        raise InputError(
            f"{path} was trained with Φ ({', '.join(differing or [f'operator: {phi.config.operator}'])}), to which its "
            "host has left the electrostatics. Go on with the same phi: section; for the host alone save "
            "load_model(folder).detach() by save_model and start from that."
        )


def _settle_architecture(run, description):
    """Options of the architecture take the trained model's values; a different one that was given is refused."""
    run.args.model = description["class"]
    irreps = mace_interface.irreps(description["hidden_irreps"])
    orders = set(description["correlation"])
    told = {
        **description,
        "correlation": orders.pop() if len(orders) == 1 else description["correlation"],
        "num_channels": irreps.count("0e"),
        "max_L": irreps.lmax,
        "radial_MLP": str(description["radial_MLP"]),
    }
    for name, key in ARCHITECTURE.items():
        given, value = getattr(run.args, name), told[key]
        if name in run.said and not _same(name, given, value):
            raise InputError(
                f"--{name}: {given} was given, but the model of --foundation_model has {value}, and a trained model's "
                f"architecture cannot be changed. Leave {name} out."
            )
        setattr(run.args, name, value)


def _same(name, given, value):
    if value is None:
        return given is None
    if name.endswith("irreps"):
        return mace_interface.irreps(given) == mace_interface.irreps(value)
    if name == "radial_MLP":
        return str(given).replace(" ", "") == value.replace(" ", "")
    if isinstance(value, float):
        return abs(float(given) - value) < 1e-6 * max(1.0, abs(value))
    return given == value


def take_over_phi(target, foundation, atomic_numbers):
    """Put the foundation's trained Φ into a fresh one whose elements are some of the foundation's."""
    known = foundation.model.atomic_numbers.tolist()
    rows = torch.tensor([known.index(number) for number in atomic_numbers])
    state = foundation.phi.state_dict()
    target.load_state_dict({name: value[rows] if name in PER_ELEMENT else value for name, value in state.items()})

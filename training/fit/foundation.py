"""Starting from a trained model: ``--foundation_model`` and what goes with it."""

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from phi_equivariant import PhiModule, PhiPotential, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.host_energy import atomic_energies
from phi_equivariant.quiet import quiet
from training import mace_hosts, mace_interface
from training.data.heads import read_heads
from training.fit.trained import load
from training.run import Host, Phi, Run
from zoo.mace_host import MaceHost

#: Options of the architecture that a trained model's description calls by another name.
OTHER_NAMES = {
    "num_radial_basis": "num_bessel",
    "num_cutoff_basis": "num_polynomial_cutoff",
    "interaction": "interaction_cls",
    "interaction_first": "interaction_cls_first",
}
#: Tensors of Φ of which elements have their own values, and the dimension along which these stand.
PER_ELEMENT = {
    "alpha_net.element_term": 0,
    "operator.width_logit": 0,
    "charge_model.heads.element_term": 1,
    "charge_model.heads.size": 1,
}


@dataclasses.dataclass
class Foundation:
    """A trained model to start from.

    path : where it was read; model : a ``ScaleShiftMACE`` with one head, in evaluation mode; phi : the ``PhiModule``
    that was trained with it and goes on, or None; electronegativity : of the Φ that was trained with it.
    """

    path: str
    model: Any
    phi: PhiModule | None
    electronegativity: float | None = None

    @property
    def atomic_numbers(self) -> list[int]:
        """Elements that the model knows, ascending."""
        return sorted(self.model.atomic_numbers.tolist())

    @property
    def energies(self) -> dict[int, float]:
        """{Z: eV} of the isolated atoms."""
        values = atomic_energies(self.model)[0]
        return dict(zip(self.model.atomic_numbers.tolist(), values.tolist(), strict=True))

    @property
    def potential(self) -> torch.nn.Module:
        """The whole trained model: a copy of the host, with its Φ where there is one."""
        with quiet():
            host = copy.deepcopy(self.model)
        if self.phi is None:
            return host
        potential = attach_phi(host, self.phi.config)
        potential.phi.load_state_dict(self.phi.state_dict())
        return potential.eval()

    def line(self) -> str:
        """What is started from, for the log."""
        elements = f"{len(self.atomic_numbers)} elements, cut-off {float(self.model.r_max):g} Å"
        return f"starting from {self.path}: {elements}{', with its Φ' if self.phi is not None else ''}"

    def choose_elements(self, found: Iterable[int], host: Host) -> list[int]:
        """Elements of the new model: those of the data (or of ``--atomic_numbers``), or all of the trained model.

        InputError if the trained model does not know one of them.
        """
        if unknown := sorted(set(found) - set(self.atomic_numbers)):
            raise InputError(
                f"--foundation_model: the data hold atomic number {', '.join(map(str, unknown))}, which {self.path} "
                f"does not know; it knows {self.atomic_numbers}. Take a model that was trained on these elements."
            )
        everything = host.foundation_model_elements or not host.foundation_filter_elements
        return self.atomic_numbers if everything else sorted(found)


def read(host: Host, phi: Phi | None) -> Foundation | None:
    """The trained model that a run starts from, or None.

    InputError if it cannot be read, or is of a kind that is not trained here.
    """
    if host.foundation_model is None:
        return None
    try:
        model, trained, electronegativity = load(host.foundation_model, host.trust_pickle), None, None
        if isinstance(model, PhiPotential):
            electronegativity = model.phi.config.electronegativity
            trained = None if phi is not None and phi.fresh else model.phi
            if trained is not None:
                _check_phi(trained, phi, host.foundation_model)
            model = model.detach()
        elif phi is not None and phi.fresh:
            raise InputError(f"{host.foundation_model} has no Φ that could start anew. Leave phi: fresh out.")
        if not MaceHost.matches(model):
            raise InputError(f"{host.foundation_model} holds a {type(model).__name__}, which is not a mace model.")
        model = mace_hosts.single_head(model, host.foundation_head)
    except InputError as error:
        raise InputError(f"--foundation_model: {error}") from error
    dtype = torch.get_default_dtype()
    return Foundation(
        str(host.foundation_model),
        model.to(dtype).eval(),
        None if trained is None else trained.to(dtype),
        electronegativity,
    )


def _check_phi(phi: PhiModule, settings: Phi | None, path: str) -> None:
    """A model that was trained with Φ goes on with the same Φ."""
    own = phi.config.to_dict()
    own.pop("init")
    own.pop("electronegativity")  # like E0s, it goes with the level of theory
    wanted = {} if settings is None else settings.config.to_dict()
    differing = [
        f"{name}: {value}, not {wanted[name]}" for name, value in own.items() if wanted.get(name, value) != value
    ]
    if settings is None or differing:
        raise InputError(
            f"{path} was trained with Φ ({'; '.join(differing or [f'operator: {phi.config.operator}'])}), to which its "
            "host has left the electrostatics. Its Φ goes on by itself: leave --phi and the phi: section out, but for "
            "weights, freeze_host and host_lr_factor. --phi fresh=true starts another Φ on its host. For the host "
            "alone save load_model(folder).detach() by save_model and start from that."
        )
    if settings.config.init != "small":
        raise InputError(
            f"phi: init: {settings.config.init} is where a new Φ starts, and the trained Φ of {path} goes on. Leave "
            "init out, or start anew by --phi fresh=true."
        )


def settled(run: Run, trained: Foundation) -> Run:
    """The run with the trained model's architecture, and heads that read what it embeds.

    An option that says that the architecture should be another does not act, as in mace, and the log says so.
    """
    description = MaceHost.describe(trained.model)
    irreps = mace_interface.irreps(description["hidden_irreps"])
    orders = set(description["correlation"])
    told = {
        **description,
        "correlation": orders.pop() if len(orders) == 1 else description["correlation"],
        "num_channels": irreps.count("0e"),
        "max_L": irreps.lmax,
        "radial_MLP": str(description["radial_MLP"]),
    }
    given, values, lines = run.values(), {"model": description["class"]}, list(run.notes)
    for name in (*Host.architecture(), "avg_num_neighbors"):
        values[name] = told[OTHER_NAMES.get(name, name)]
        if name in run.said and not _same(name, given[name], values[name]):
            lines.append(f"--{name} {given[name]} does not act: the model of --foundation_model has {values[name]}")
    run = run.changed(**values)
    heads = tuple(read_heads(run.data, run.host, run.replay))
    return dataclasses.replace(run, heads=heads, notes=tuple(lines))


def _same(name: str, given: Any, value: Any) -> bool:
    if value is None:
        return given is None
    if name.endswith("irreps"):
        return bool(mace_interface.irreps(given) == mace_interface.irreps(value))
    if name == "radial_MLP":
        return str(given).replace(" ", "") == value.replace(" ", "")
    if isinstance(value, float):
        return abs(float(given) - value) < 1e-6 * max(1.0, abs(value))
    return bool(given == value)


def take_over_phi(target: torch.nn.Module, foundation: Foundation, atomic_numbers: list[int]) -> None:
    """Put the foundation's trained Φ into a fresh one whose elements are some of the foundation's."""
    assert foundation.phi is not None
    known = foundation.model.atomic_numbers.tolist()
    rows = torch.tensor([known.index(number) for number in atomic_numbers])
    state = foundation.phi.state_dict()
    of_elements = {
        name: value.index_select(PER_ELEMENT[name], rows) for name, value in state.items() if name in PER_ELEMENT
    }
    target.load_state_dict({**state, **of_elements})

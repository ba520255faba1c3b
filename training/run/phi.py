"""The ``phi:`` section: what Φ computes, the terms that regularise it, and the host's part in training."""

import dataclasses
import math
from typing import Any

from phi_equivariant.config import PhiConfig
from phi_equivariant.errors import InputError


def setting(means: str, default: Any) -> Any:
    """A key of the section."""
    return dataclasses.field(default=default, metadata={"means": means})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Phi:
    """A ``phi:`` section: the settings of Φ and how it trains."""

    config: PhiConfig
    pde_weight: float = setting("λ_pde, multiplies the mean Poisson residual of a batch's structures", 0.0)
    net_charge_weight: float = setting("λ_q, multiplies the mean squared excess charge", 0.0)
    pde_warmup_epochs: int = setting("number of first epochs in which both are zero", 0)
    freeze_host: bool = setting("train Φ alone", False)
    fresh: bool = setting("start Φ anew where the trained model has one, with the settings given here", False)
    host_lr_factor: float = setting("the host's part of the learning rate, which Φ has in full", 1.0)

    def __post_init__(self) -> None:
        for name in ("pde_weight", "net_charge_weight", "pde_warmup_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"phi: {name} is {getattr(self, name)}; expected a number greater than or equal to 0.")
        if not 0 < self.host_lr_factor < math.inf:
            raise InputError(f"phi: host_lr_factor is {self.host_lr_factor}; expected a number greater than 0.")
        if self.freeze_host and self.host_lr_factor != 1.0:
            raise InputError("phi: freeze_host and host_lr_factor are both given: a frozen host has no rate.")
        # A weight on a term that is zero by construction would be ignored in silence.
        if self.pde_weight and self.config.poisson == "exact":
            raise InputError(
                f"phi: pde_weight = {self.pde_weight} weighs the Poisson residual, which is zero by construction with "
                "poisson: exact. Leave pde_weight out, or choose poisson: learned."
            )
        # The operators need torch, which help and other runs do without.
        from phi_equivariant.operators.kinds import operator_class

        if self.net_charge_weight and not operator_class(self.config).carries_charge:
            raise InputError(
                f"phi: net_charge_weight = {self.net_charge_weight} weighs the net charge, zero by construction "
                f"with operator: {self.config.operator}. Leave it out, or choose operator: coulomb."
            )
        if self.net_charge_weight and self.config.charge_model == "qeq" and self.config.channels == 1:
            raise InputError(
                f"phi: net_charge_weight = {self.net_charge_weight} weighs the net charge, the total charge by "
                "construction with charge_model: qeq. Leave it out, or choose charge_model: sqe or direct."
            )
        if self.pde_warmup_epochs and not (self.pde_weight or self.net_charge_weight):
            raise InputError(
                f"phi: pde_warmup_epochs = {self.pde_warmup_epochs} delays pde_weight and net_charge_weight, which are "
                "both zero. Give one of them, or leave pde_warmup_epochs out."
            )

    @classmethod
    def own(cls) -> list[dataclasses.Field[Any]]:
        """The keys beside those of PhiConfig."""
        return [field for field in dataclasses.fields(cls) if field.name != "config"]

    def section(self) -> dict[str, Any]:
        """The section as it could stand in a YAML file."""
        return {**self.config.to_dict(), **{field.name: getattr(self, field.name) for field in self.own()}}

"""How weights move: optimiser, schedule, moving average, stages."""

import dataclasses
import importlib.util
import json
import math

from phi_equivariant.errors import InputError
from training.run.option import ABOVE_ZERO, BELOW_ONE, UP_TO_ONE, ZERO_OR_MORE, RunPart, option

#: What ``lr_params_factors`` may name: layers of a mace model, by mace's own names.
FACTORS = ("embedding_lr_factor", "interactions_lr_factor", "products_lr_factor", "readouts_lr_factor")
SCHEDULERS = ("ReduceLROnPlateau", "ExponentialLR", "CosineAnnealingLR")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser(RunPart):
    """The optimiser, its learning rates and the moving average of the weights."""

    optimizer: str = option("adam, adamw or schedulefree (a separate package; schedules do not act on it)")
    lr: float = option("learning rate")
    lr_params_factors: str = option("factors on the learning rates of mace's parameter groups")
    weight_decay: float = option("for the parameters that mace decays; never for Φ")
    beta: float = option("first moment's decay")
    beta1_schedulefree: float = option("first moment's decay of schedulefree")
    beta2_schedulefree: float = option("second moment's decay of schedulefree")
    amsgrad: bool = option(
        "AMSGrad variant, on as in mace; amsgrad: false in a file switches it off, which mace ignores"
    )
    lbfgs: bool = option(
        "L-BFGS, a step per epoch over the whole training set, from the start or from another optimiser's checkpoint; "
        "its batches are always the same (mace shuffles them during the line search); lr and scheduler have no effect "
        "on it, as in mace"
    )
    clip_grad: float | None = option("largest norm of the gradient")
    scheduler: str = option("ReduceLROnPlateau, ExponentialLR or CosineAnnealingLR (with linear warm-up; ours)")
    lr_factor: float = option("factor of ReduceLROnPlateau")
    scheduler_patience: int = option("epochs that ReduceLROnPlateau waits")
    lr_scheduler_gamma: float = option("factor of ExponentialLR, per epoch")
    warmup_epochs: float = option("epochs of linear warm-up of CosineAnnealingLR")
    final_lr_factor: float = option("last learning rate over the first, of CosineAnnealingLR")
    ema: bool = option("validate and test an exponential moving average of the weights")
    ema_decay: float = option("decay of that average, warmed up as in mace")

    def __post_init__(self) -> None:
        self.expect(ABOVE_ZERO, "lr", "clip_grad", "lr_factor", "lr_scheduler_gamma")
        self.expect(ZERO_OR_MORE, "weight_decay", "warmup_epochs", "scheduler_patience")
        self.expect(UP_TO_ONE, "ema_decay", "final_lr_factor")
        self.expect(BELOW_ONE, "beta", "beta1_schedulefree", "beta2_schedulefree", "lr_factor")
        if self.scheduler not in SCHEDULERS:
            raise InputError(f"--scheduler: there is no {self.scheduler!r}; choose {', '.join(SCHEDULERS)}.")
        if self.warmup_epochs and self.scheduler != "CosineAnnealingLR":
            raise InputError(f"--warmup_epochs acts with CosineAnnealingLR only; --scheduler is {self.scheduler}.")
        self.factors()
        if self.optimizer == "schedulefree" and importlib.util.find_spec("schedulefree") is None:
            raise InputError("--optimizer: pip install schedulefree, or choose adam or adamw.")
        own = "lbfgs" if self.lbfgs else f"optimizer {self.optimizer}"
        if not self.scheduled and self.scheduler == "CosineAnnealingLR":
            raise InputError(f"--scheduler: CosineAnnealingLR has no effect with --{own}, which takes no schedule.")

    @property
    def scheduled(self) -> bool:
        """Whether a schedule acts: schedule-free optimisers and L-BFGS take none, as in mace."""
        return not (self.lbfgs or self.optimizer == "schedulefree")

    def factors(self) -> dict[str, float]:
        """{layers: factor} of ``lr_params_factors``; layers that it does not name, and those not in it, have 1.

        InputError if it is not JSON of mace's four names with numbers, zero or more.
        """
        text = self.lr_params_factors
        try:
            found = json.loads(text.replace("'", '"'))  # a dictionary in a file comes as Python writes it
        except ValueError:
            found = None
        good = isinstance(found, dict) and all(
            name in FACTORS and type(value) in (int, float) and 0 <= value < math.inf for name, value in found.items()
        )
        if not good:
            raise InputError(
                f"--lr_params_factors: expected JSON with numbers, zero or more, for some of {', '.join(FACTORS)}, as "
                f"in '{{\"readouts_lr_factor\": 0.1}}', got {text!r}."
            )
        return {name.removesuffix("_lr_factor"): value for name, value in found.items()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stages(RunPart):
    """How many epochs, in one stage or two, and when training stops."""

    max_num_epochs: int = option("number of epochs", restart=True)
    eval_interval: int = option("validate after the first epoch, after every so many more, and after the last")
    patience: int = option(
        "validations without a better loss after which stage two begins, or training stops", restart=True
    )
    swa: bool = option(
        "stage two: other weights of the loss and another learning rate; its best weights are the run's, those of "
        "stage one go to stage_one/ (no weights are averaged, nor does mace use its average)"
    )
    start_swa: int | None = option(
        "number of epochs before stage two, three quarters by default; patience that ends before, or a time limit, "
        "brings it forward"
    )
    swa_lr: float = option(
        "learning rate of stage two, times the factors of lr_params_factors (which mace forgets there)"
    )

    def __post_init__(self) -> None:
        self.expect(ABOVE_ZERO, "max_num_epochs", "eval_interval", "patience", "swa_lr")
        if self.start_swa is not None and self.start_swa < 1:
            raise InputError(f"--start_swa: expected the number of an epoch, got {self.start_swa}.")

    @property
    def of_stage_one(self) -> int:
        """Number of epochs of stage one."""
        return self.start_swa if self.swa and self.start_swa is not None else self.max_num_epochs

"""Replay: fine-tuning on new data together with data of the trained model, which have a head of their own."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from phi_equivariant.errors import InputError
from training.run.option import ABOVE_ZERO, ZERO_OR_MORE, RunPart, option

#: The head of the trained model's data, as in mace; the first of a model's heads.
PT_HEAD = "pt_head"
#: Data sets that mace replays by a name, of which it downloads the first for all.
NAMED = ("mp", "omat", "matpes_pbe", "matpes_r2scan")

#: What mace gives a run with replay, unless ``force_mh_ft_lr`` keeps what was asked for.
_RATE = {"lr": 0.0001, "ema": True, "ema_decay": 0.99999}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replay(RunPart):
    """What of the trained model's data is trained on again, and how."""

    multiheads_finetuning: bool = option(
        "with foundation_model and pt_train_file: train on both, each with a head of its own; as in mace the loss is "
        "then universal, and without force_mh_ft_lr lr is 0.0001, with an average of the weights of decay 0.99999"
    )
    pt_train_file: str | None = option(
        "structures that the trained model was trained on, or mp: mace's selection of the Materials Project, if mace "
        "has it in its cache"
    )
    pt_valid_file: str | None = option("validation structures of that head; split off the others by default")
    weight_pt_head: float = option("config_weight of the structures of pt_train_file mp")
    real_pt_data_ratio_threshold: float = option(
        "fewer new structures than this many per replayed one are repeated until they are as many"
    )
    force_mh_ft_lr: bool = option("keep lr, ema and ema_decay as they are given")
    num_samples_pt: int = option("number of structures of pt_train_file mp")
    subselect_pt: str = option("how they are chosen: random; fps is refused, it needs a model that mace downloads")
    filter_type_pt: str = option(
        "from those of some elements first, by atomic_numbers: combinations (some of them alone), exclusive (just "
        "these), inclusive (these and any others), or none"
    )
    allow_random_padding_pt: bool = option(
        "a flag: refuse too few of these elements, rather than take others at random as well"
    )

    def __post_init__(self) -> None:
        self.expect(ZERO_OR_MORE, "weight_pt_head", "real_pt_data_ratio_threshold")
        if not self.active:
            return
        if self.pt_train_file in NAMED[1:]:
            raise InputError(
                f"--pt_train_file: for {self.pt_train_file} mace replays the same data as for mp. Give mp, or a file."
            )
        if self.selects:
            self.expect(ABOVE_ZERO, "num_samples_pt")
            if self.subselect_pt != "random":
                raise InputError(
                    f"--subselect_pt: {self.subselect_pt} compares structures by a model that mace downloads. Choose "
                    "random, or select with mace's fine_tuning_select and give the file by --pt_train_file."
                )

    @property
    def active(self) -> bool:
        """Whether there is a head of the trained model's data."""
        return self.multiheads_finetuning and self.pt_train_file is not None

    @property
    def selects(self) -> bool:
        """Whether structures are selected: of a file of one's own all are taken, as in mace."""
        return self.active and self.pt_train_file in NAMED


def is_active(values: Mapping[str, Any]) -> bool:
    """Whether the options ask for replay: mace's switch for it is on, so that a file of structures is enough."""
    wanted = values["multiheads_finetuning"] and values["foundation_model"] is not None
    return bool(wanted and values["pt_train_file"] is not None)


def settled(values: Mapping[str, Any], given: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Options as a run has them, and lines for the log where they are not those that were given.

    ``given`` : options that the user gave another value than the default.
    """
    if not is_active(values):
        return {"multiheads_finetuning": False}, []
    taken = {"loss": "universal", **({} if values["force_mh_ft_lr"] else _RATE)}
    lines = [
        f"replay: --{name} {value} in place of {values[name]}, as in mace"
        + ("" if name == "loss" else "; --force_mh_ft_lr True keeps it")
        for name, value in taken.items()
        if values[name] != value and (name in given or name in ("loss", "lr"))
    ]
    return {"multiheads_finetuning": True, **taken}, lines

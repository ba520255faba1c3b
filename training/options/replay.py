"""What replay settles of a run: whether there is any, and the options that mace then takes over."""

from collections.abc import Collection, Mapping
from typing import Any

#: What mace gives a run with replay, unless ``force_mh_ft_lr`` keeps what was asked for.
_RATE = {"lr": 0.0001, "ema": True, "ema_decay": 0.99999}


def is_active(values: Mapping[str, Any]) -> bool:
    """Whether the options ask for replay: mace's switch for it is on, so that a file of structures is enough."""
    wanted = values["multiheads_finetuning"] and values["foundation_model"] is not None
    return bool(wanted and values["pt_train_file"] is not None)


def settled(values: Mapping[str, Any], given: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Options as a run has them, and lines for the log where they are not those that were given.

    Parameters
    ----------
    values : {option: value}
    given : options that the user gave another value than the default
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

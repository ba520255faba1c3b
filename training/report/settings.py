"""Settings of a run for its page: those that differ from the defaults, and all of them."""

import importlib.metadata
import platform
from typing import Any

import yaml

from phi_equivariant.config import PhiConfig
from training.run import PARTS, Phi, Run

SHOWN_ALWAYS = ("operator", "poisson", "charge_model")  # of Φ: what a reader asks first
NOT_OF_THE_MODEL = {"phi", "no_phi", "config", "restart_latest"}  # said elsewhere, or not of interest
PACKAGES = ("phi-equivariant", "mace-torch", "torch", "e3nn", "lightning")


def changed(run: Run) -> dict[str, dict[str, Any]]:
    """{title: {setting: value}}: Φ's first, then by part the options that were given another value than the default."""
    found: dict[str, dict[str, Any]] = {}
    if run.phi is not None:
        default = Phi(config=PhiConfig()).section()
        section = run.phi.section()
        found["Φ"] = {
            name: value for name, value in section.items() if name in SHOWN_ALWAYS or value != default.get(name)
        }
    resolved = run.resolved()
    for name, (_, title) in PARTS.items():
        values = getattr(run, name).values()
        own = {
            option: resolved.get(option, values[option]) for option in values if option in run.given - NOT_OF_THE_MODEL
        }
        if own:
            found[title] = own
    return found


def whole(run: Run) -> str:
    """All settings, as config.yaml has them."""
    return yaml.safe_dump(run.resolved(), sort_keys=True, allow_unicode=True)


def versions() -> dict[str, str]:
    """{package: version} of what trained the model."""
    return {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}

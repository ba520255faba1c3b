"""What a file from outside may ask for: values and sizes are checked before anything is built or memory is taken."""

import math
import re

import safetensors

from phi_equivariant.config import PhiConfig
from phi_equivariant.errors import InputError
from phi_equivariant.taps import read_taps
from phi_equivariant.weights import CONFIG_FILE, WEIGHTS_FILE, host_types
from zoo.store.registry import FILE_LIMITS, read_json

#: Arguments of hosts that decide how large they are: whole numbers between two bounds.
WHOLE = {
    "num_interactions": (1, 16),
    "max_ell": (0, 6),
    "correlation": (1, 4),
    "num_bessel": (1, 512),
    "num_polynomial_cutoff": (1, 64),
    "num_elements": (1, 118),
    "atomic_numbers": (1, 118),
    "radial_MLP": (1, 8192),
    "hidden_channels": (1, 8192),
    "num_filters": (1, 8192),
    "num_gaussians": (2, 512),
    "num_rbf": (1, 512),
    "num_heads": (1, 512),
}
LISTS = ("atomic_numbers", "radial_MLP")
NUMBER_OR_LIST = ("correlation",)  # one for all layers, or one for each
RADIAL_TYPES = ("bessel", "gaussian", "chebyshev")
LENGTHS = {"r_max": (0.0, 100.0), "avg_num_neighbors": (0.0, 1e5)}
IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps")
MOST_CHANNELS, MOST_L, MOST_LAYERS, MOST_PARTS = 8192, 6, 64, 8
MOST_COUPLINGS = 2e5  # (max_ell + 1)^(2 correlation), entries of mace's largest coupling matrix for each of its outputs
_IRREP = re.compile(r"((?P<mul>[0-9]{1,18})x)?(?P<l>[0-9]{1,9})(?P<p>[eo])")
MOST_VALUES, LONGEST_TEXT = 50_000, 1000


def check_files(folder):
    """The configuration in ``folder``, after checking that a model may be built from it.

    Every number has bounds, and a model may not need more parameters than the file has: memory stays within a small
    multiple of the file's size.

    Raises
    ------
    InputError
        Naming the file and the value.
    """
    path = folder / CONFIG_FILE
    config = read_json(path, FILE_LIMITS[CONFIG_FILE])
    try:
        _check_values(config)
        host = config["host"]
        if host["type"] not in host_types():
            raise InputError(f"host type {_short(host['type'])} is not one of {', '.join(host_types())}")
        needed = check_arguments(host["arguments"])
        if config["phi"] is not None:
            needed |= _phi_needs(config["phi"])
    except InputError as error:
        raise InputError(f"{path}: {error}. Nothing was built.") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} is no configuration of a model ({type(error).__name__}: {error}).") from error
    available = _numbers_in(folder / WEIGHTS_FILE)
    for name, least in needed.items():
        if least > available:
            raise InputError(
                f"{path}: {name} needs at least {least} parameters, but {WEIGHTS_FILE} has {available}; the two do not "
                "belong together. Nothing was built."
            )
    return config


def _numbers_in(path):
    """How many numbers a safetensors file holds, from its header."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({error}): the file is damaged.") from error


def _check_values(config):
    """InputError for a text that is too long, a number that is not finite, or more values than a model has settings."""
    left, n_values = [config], 0
    while left:
        value = left.pop()
        n_values += 1
        if n_values > MOST_VALUES:
            raise InputError(f"there are more than {MOST_VALUES} values")
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise InputError(f"a text has {len(value)} characters")
        elif isinstance(value, int | float) and not abs(value) < 1e12:
            raise InputError(f"{str(value)[:40]} is not a number of moderate size")


def check_arguments(arguments):
    """{argument: least number of parameters it makes} of a host's constructor arguments, which must be within bounds.

    Raises
    ------
    InputError
        For the first that is not.
    """
    for name in LISTS:
        if not isinstance(arguments.get(name, []), list | tuple) or len(arguments.get(name, [])) > 118:
            raise InputError(f"{name} is {_short(arguments[name])}; expected a list of whole numbers")
    for name, (low, high) in WHOLE.items():
        values = arguments.get(name)
        many = isinstance(values, list | tuple) and name in (*LISTS, *NUMBER_OR_LIST)
        if many and not values and name != "radial_MLP":
            raise InputError(f"{name} is an empty list; expected whole numbers from {low} to {high}")
        for value in values if many else [values]:
            whole = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            if not (whole or (value is None and not many)):
                raise InputError(f"{name} is {_short(value)}; expected whole numbers from {low} to {high}")
    layers, orders = arguments.get("num_interactions"), arguments.get("correlation")
    if layers is None:
        raise InputError("num_interactions is missing; expected a whole number")
    if isinstance(orders, list | tuple) and len(orders) != layers:
        raise InputError(f"correlation is {_short(orders)} for {layers} interactions; expected one for each")
    if arguments.get("radial_type", RADIAL_TYPES[0]) not in RADIAL_TYPES:
        raise InputError(
            f"radial_type is {_short(arguments['radial_type'])}; expected one of {', '.join(RADIAL_TYPES)}"
        )
    for name in ("parity", "train_scale_shift"):
        if not isinstance(arguments.get(name, False), bool):
            raise InputError(f"{name} is {_short(arguments[name])}; expected true or false")
    for name, (low, high) in LENGTHS.items():
        value = arguments.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and low < value <= high
        if not (number or value is None):
            raise InputError(f"{name} is {_short(value)}; expected a number above {low:g}, at most {high:g}")
    for name in IRREPS:
        if arguments.get(name) is not None:
            _check_irreps(name, arguments[name])
    max_ell = arguments.get("max_ell")
    if orders is not None and max_ell is not None:
        order = max(orders) if isinstance(orders, list | tuple) else orders
        if (max_ell + 1) ** (2 * order) > MOST_COUPLINGS:
            raise InputError(f"correlation {order} with max_ell {max_ell} makes too many couplings")
    channels, largest = _channels(arguments)
    widths = arguments.get("radial_MLP") or []
    return {
        "num_interactions": arguments["num_interactions"] * channels**2,
        "hidden_irreps" if "hidden_irreps" in arguments else "hidden_channels": largest**2 // 16,
        "atomic_numbers": channels * len(arguments["atomic_numbers"]),
        "num_filters": arguments.get("num_filters", 0) ** 2,
        "radial_MLP": sum(a * b for a, b in zip(widths, widths[1:], strict=False)),
    }


def _channels(arguments):
    """Number of scalar channels of a host, and the largest number of any kind."""
    if "hidden_irreps" not in arguments:
        return arguments["hidden_channels"], arguments["hidden_channels"]
    hidden = _check_irreps("hidden_irreps", arguments["hidden_irreps"])
    channels = sum(mul for mul, l_p in hidden if l_p == "0e")
    if channels == 0:
        raise InputError(f"hidden_irreps is {arguments['hidden_irreps']}; without 0e channels nothing gives energies")
    return channels, max(mul for mul, _ in hidden)


def _phi_needs(phi):
    """The same for Φ."""
    config = PhiConfig.from_dict(phi["config"])
    if len(phi["taps"]) > MOST_LAYERS:
        raise InputError(f"taps are {len(phi['taps'])}; at most {MOST_LAYERS} are allowed")
    for name, given in phi["taps"].items():
        parts = given if isinstance(given, list) else [given]
        if len(parts) > MOST_PARTS:
            raise InputError(f"the tap {name} has {len(parts)} parts; at most {MOST_PARTS} are allowed")
        for part in parts:
            _check_irreps(f"the tap {name}", part["irreps"] if isinstance(part, dict) else part)
    read_taps(phi["taps"])
    return {"phi: hidden": len(phi["taps"]) * config.hidden**2, "phi: channels": config.hidden * config.channels}


def _check_irreps(name, text):
    """[(multiplicity, "0e")] of irreps as text; not by e3nn, which takes memory for every single channel."""
    found = [_IRREP.fullmatch(part) for part in str(text).replace(" ", "").split("+")]
    if None in found:
        raise InputError(f"{name} is {_short(text)}, no irreps; write them as '32x0e+32x1o'")
    irreps = [(int(match["mul"] or 1), f"{int(match['l'])}{match['p']}") for match in found]
    if sum(mul for mul, _ in irreps) > MOST_CHANNELS or any(int(l_p[:-1]) > MOST_L for _, l_p in irreps):
        raise InputError(f"{name} is {_short(text)}; at most {MOST_CHANNELS} channels and l = {MOST_L} are allowed")
    return irreps


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"

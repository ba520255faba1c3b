"""Taps: which outputs of a host's submodules are its node features, and how they are read."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch

from phi_equivariant.errors import InputError
from phi_equivariant.quiet import importing

with importing():
    from e3nn import o3

LAYOUTS = ("mul_ir", "ir_mul")
Taps = Mapping[str, "tuple[Tap, ...]"]  # {"submodule.name": what is read from its output}


@dataclasses.dataclass(frozen=True)
class Tap:
    """Node features in what a submodule returns.

    With ``increment`` they are h⁽ᵗ⁾ = h⁽⁰⁾ + Σ_{s≤t} Δh⁽ˢ⁾, for networks that write h = h + layer(h): the increments
    Δh of equal taps are added up in the order of the taps; taps with another ``start`` are another sum.

    Parameters
    ----------
    irreps: irreps of the features, or a number of 0e channels
    element: place or key of the features in what the submodule returns; None if it returns nothing else
    layout: ``mul_ir``, e3nn's (n_atoms, Σ channels · (2l + 1)), or ``ir_mul``, (n_atoms, Σ (2l + 1), channels) with as
        many channels for every l
    increment: whether the submodule returns Δh⁽ᵗ⁾
    start: name of the submodule that returns h⁽⁰⁾, in the same layout; zero where None

    Raises
    ------
    InputError
        For irreps, a layout or a combination that cannot be read.
    """

    irreps: str | int
    element: int | str | None = None
    layout: str = "mul_ir"
    increment: bool = False
    start: str | None = None

    def __post_init__(self) -> None:
        width = isinstance(self.irreps, int) and not isinstance(self.irreps, bool)
        try:
            irreps = o3.Irreps(f"{self.irreps}x0e" if width else self.irreps)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"taps holds {self.irreps!r}, which are not irreps ({error}); write '32x0e+32x1o', or a number of 0e "
                "channels."
            ) from error
        object.__setattr__(self, "irreps", str(irreps))
        if self.layout not in LAYOUTS:
            raise InputError(f"a tap's layout is {self.layout!r}; give one of {', '.join(LAYOUTS)}.")
        if self.layout == "ir_mul" and len({mul for mul, _ in irreps}) != 1:
            raise InputError(
                f"a tap of irreps {irreps} has layout='ir_mul', where every l has as many channels; tap the parts one "
                "by one, as a list."
            )
        for name, kinds in (("element", (int, str, type(None))), ("increment", bool), ("start", (str, type(None)))):
            if not isinstance(getattr(self, name), kinds):
                raise InputError(f"a tap's {name} is {getattr(self, name)!r}, a {type(getattr(self, name)).__name__}.")
        if self.start is not None and not self.increment:
            raise InputError(f"a tap has start={self.start!r} without increment=True, and nothing is added to it.")

    def to_dict(self) -> str | dict[str, Any]:
        """Irreps as text if there is nothing else to say, else a dictionary of what differs from the defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        said = {name: value for name, value in dataclasses.asdict(self).items() if value != defaults[name]}
        return said if len(said) > 1 else str(self.irreps)

    def read(self, output: Any, name: str) -> torch.Tensor:
        """Features (n_atoms, irreps.dim) in e3nn's layout from what the submodule ``name`` returned."""
        if self.element is not None:
            try:
                output = output[self.element]
            except (KeyError, IndexError, TypeError) as error:
                raise InputError(f"tap {name!r} has no element {self.element!r} in its output: {error!r}.") from error
        return self._in_order(output, name)

    def read_start(self, output: Any) -> torch.Tensor:
        """The same from what ``start`` returned."""
        return self._in_order(output, self.start)

    def _in_order(self, features: Any, name: str | None) -> torch.Tensor:
        irreps = o3.Irreps(self.irreps)
        shape = (irreps.dim,) if self.layout == "mul_ir" else (sum(ir.dim for _, ir in irreps), irreps[0].mul)
        if not torch.is_tensor(features):
            hint = " name its element." if isinstance(features, tuple | list | dict) else ""
            raise InputError(
                f"tap {name!r} gave {type(features).__name__}; expected a tensor of shape {('n_atoms', *shape)}.{hint}"
            )
        if features.shape[1:] != shape:
            raise InputError(
                f"tap {name!r} gave features of shape {tuple(features.shape)}; irreps {irreps} have width "
                f"{irreps.dim}, in layout {self.layout!r} {('n_atoms', *shape)}."
            )
        if self.layout == "mul_ir":
            return features
        blocks = features.split([ir.dim for _, ir in irreps], dim=1)
        return torch.cat([block.mT.flatten(1) for block in blocks], dim=1)


class RecordedOutput:
    """Forward hook that hands what a submodule returns to the pass of a potential that is under way, if one is.

    It is the pass that holds the outputs: threads that share a model have their own. A plain object, not a closure:
    hooks survive ``copy.deepcopy``, ``torch.save`` and pickling.
    """

    def __call__(self, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        recording = _recording.get()
        if recording is not None and self in recording:
            recording[self].append(output)


@contextlib.contextmanager
def recording(hooks: Mapping[str, RecordedOutput]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Record what {submodule: hook} see; gives a function that returns {submodule: output}.

    Raises
    ------
    InputError
        By the function, if a submodule did not run, or ran more than once.
    """
    outputs: dict[RecordedOutput, list[Any]] = {hook: [] for hook in hooks.values()}

    def take() -> dict[str, Any]:
        for name, hook in hooks.items():
            if len(outputs[hook]) != 1:
                raise InputError(
                    f"the tapped submodule {name!r} ran {len(outputs[hook])} times in one pass of the host; tap "
                    "submodules that run once."
                )
        return {name: outputs[hook][0] for name, hook in hooks.items()}

    token = _recording.set({**(_recording.get() or {}), **outputs})
    try:
        yield take
    finally:
        _recording.reset(token)


_recording: ContextVar[dict[RecordedOutput, list[Any]] | None] = ContextVar("recording", default=None)


def read_taps(taps: Any) -> dict[str, tuple[Tap, ...]]:
    """{"submodule.name": (Tap, …)} from what a user, a host or a file gave.

    Parameters
    ----------
    taps: dictionary whose values are a ``Tap``, irreps, a width, a dictionary of a tap's settings, or a list of these,
        which are read side by side as one layer

    Raises
    ------
    InputError
        If it is not that.
    """
    if not isinstance(taps, dict) or not taps:
        raise InputError(f"taps is {taps!r}; give a dictionary {{'submodule.name': irreps or Tap(…), …}}.")
    found = {name: tuple(map(_tap, given if _is_several(given) else [given])) for name, given in taps.items()}
    empty = [name for name, parts in found.items() if not parts]
    if empty:
        raise InputError(f"taps has nothing to read in {empty[0]!r}; give irreps or Tap(…).")
    return found


def write_taps(taps: Taps) -> dict[str, Any]:
    """What :func:`read_taps` reads, as JSON can hold it."""
    written = {name: [tap.to_dict() for tap in parts] for name, parts in taps.items()}
    return {name: parts if len(parts) > 1 else parts[0] for name, parts in written.items()}


def irreps_of(parts: tuple[Tap, ...]) -> o3.Irreps:
    """Irreps of a layer, those of its taps side by side."""
    return sum((o3.Irreps(tap.irreps) for tap in parts), o3.Irreps())


def submodules(taps: Taps) -> list[str]:
    """Names of the submodules whose outputs are read, each once."""
    return list(dict.fromkeys([*taps, *(tap.start for parts in taps.values() for tap in parts if tap.start)]))


def read_layers(taps: Taps, outputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Features (n_atoms, irreps.dim) of each layer from {submodule: output}."""
    sums: dict[Tap, torch.Tensor] = {}
    layers = []
    for name, parts in taps.items():
        features = []
        for tap in parts:
            value = tap.read(outputs[name], name)
            if tap.increment:
                if tap not in sums and tap.start is not None:
                    sums[tap] = tap.read_start(outputs[tap.start])
                value = sums[tap] = value + sums[tap] if tap in sums else value
            features.append(value)
        layers.append(features[0] if len(features) == 1 else torch.cat(features, dim=-1))
    return layers


def _is_several(given: Any) -> bool:
    return isinstance(given, list | tuple) and not isinstance(given, o3.Irreps)  # which are a tuple too


def _tap(given: Any) -> Tap:
    if isinstance(given, Tap):
        return given
    if not isinstance(given, dict):
        return Tap(given)
    known = [field.name for field in dataclasses.fields(Tap)]
    unknown = [key for key in given if key not in known]
    if unknown or "irreps" not in given:
        raise InputError(f"a tap is {given!r}; give irreps and, where needed, {', '.join(known[1:])}.")
    return Tap(**given)

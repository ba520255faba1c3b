"""The heads of a run: each with its own files, keys and E0s, in the form that mace takes."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from phi_equivariant.errors import InputError, did_you_mean
from training.data.labels import KEY_OPTIONS, resolve_keys
from training.data.literals import literal, read_json
from training.data.replay import materials_project
from training.data.stored_files import is_stored
from training.quantities import LABELS
from training.run import HEAD, Data, Head, Host, Replay
from training.run.data import OF_A_HEAD
from training.run.replay import PT_HEAD

#: Where energies of isolated atoms may come from, beside a dictionary and a JSON file.
E0S_FROM = ("average", "estimated", "foundation")
_Number = Annotated[float, Field(strict=True)]
_Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
_Element = Annotated[int, Field(strict=True, gt=0, lt=119)]
#: Settings that are numbers, lists or dictionaries of them: the type, and what is said of it.
_FORMS: dict[str, tuple[Any, str]] = {
    "E0s": (
        Annotated[dict[int, pydantic.FiniteFloat], Field(min_length=1)],
        f"energies (eV) by atomic number, as in {{1: -13.6, 8: -2043.0}}, a JSON file, or one of {', '.join(E0S_FROM)}",
    ),
    "config_type_weights": (dict[Any, _Weight], "numbers, zero or more, by config_type, as in {'hot': 0.5}"),
    "atomic_numbers": (
        Annotated[list[_Element], Field(min_length=1), pydantic.AfterValidator(lambda numbers: sorted({*numbers}))],
        "a list as in '[1, 6, 8]'",
    ),
    "valid_fraction": (_Number, "a fraction between 0 and 1"),
    **dict.fromkeys(("mean", "std", "avg_num_neighbors"), (_Number, "a number")),
}


def read_heads(data: Data, host: Host, replay: Replay) -> list[Head]:
    """The heads of a run, in the model's order: ``pt_head`` first, one called ``Default`` without ``--heads``.

    InputError if ``--heads`` or a setting in it cannot be understood.
    """
    common = {name: getattr(data, name) for name in OF_A_HEAD}
    keys = {name: getattr(data, name) for name in KEY_OPTIONS} | _embedding_keys(host.embeddings)
    if data.dataset:
        common["train_file"] = data.dataset
    # Of a trained model's statistics nothing is taken, so its cut-off need not be that of the statistics.
    r_max = host.r_max if host.foundation_model is None else None
    settings = {HEAD: common} if data.heads is None else settings_of(data.heads)
    if data.heads is not None:
        common |= {"test_file": None, "test_dir": None}  # which mace does not pass on
    replayed = settings.pop(PT_HEAD, {}) if replay.active else None
    heads = []
    for name, own in settings.items():
        where = "" if data.heads is None else f"head {name!r}: "
        values = common | {key: value for key, value in own.items() if key in OF_A_HEAD}
        of_head = keys if data.heads is None else keys | own_keys(own, where)
        heads.append(_head(name, values, of_head, own.get("head_key") or data.head_key, r_max, where))
    if replayed is not None:
        if not heads:
            raise InputError(f"--heads: with --pt_train_file there must be a head beside {PT_HEAD}. Add one.")
        heads.append(_replayed_head(data, replay, keys | own_keys(replayed, f"head {PT_HEAD!r}: "), common))
    return sorted(heads, key=lambda head: head.name != PT_HEAD)


def _replayed_head(data: Data, replay: Replay, keys: dict[str, str], common: Mapping[str, Any]) -> Head:
    """The head of the trained model's data: of a head of that name the user says no more than the keys, as in mace.

    Its elements are those of its structures, whatever ``--atomic_numbers`` says, where they can be counted.
    """
    values = {**common, "train_file": replay.pt_train_file, "valid_file": replay.pt_valid_file, "E0s": "foundation"}
    values |= dict.fromkeys(("test_file", "test_dir", "statistics_file", "mean", "std"))
    values |= {"compute_avg_num_neighbors": False}
    if replay.selects:
        values |= {"train_file": str(materials_project()), "valid_file": None, "config_type_weights": "{}"}
        keys = keys | {f"{name}_key": name for name in ("energy", "forces", "stress")}
    if not any(is_stored(file) for file in _paths(values["train_file"], "--pt_train_file: ")):
        values["atomic_numbers"] = None
    return _head(PT_HEAD, values, keys, data.head_key, None, "--pt_train_file: ")


def settings_of(text: object) -> dict[str, dict[str, Any]]:
    """{head: its settings} of ``--heads``, checked; InputError if they cannot be understood."""
    if isinstance(text, str):
        _refuse_twice(text)
    found = literal(text, "--heads", "{'dft': {'train_file': 'dft.xyz', 'E0s': 'average'}, 'mp2': {…}}")
    if not isinstance(found, dict) or not found:
        raise InputError(f"--heads: expected heads with their settings as in mace, {{'dft': {{…}}, …}}, got {text!r}.")
    for name, settings in found.items():
        if not isinstance(name, str) or not name.strip() or "/" in name:
            raise InputError(f"--heads: {name!r} is not a name for a head; expected a word such as dft.")
        if not isinstance(settings, dict):
            raise InputError(f"--heads: head {name!r} is {settings!r}; expected its settings, {{'train_file': …}}.")
        known = (*OF_A_HEAD, *KEY_OPTIONS, "head_key", "info_keys", "arrays_keys")
        for key in settings:
            if key not in known:
                hint = did_you_mean(key, known, f"A head has {', '.join(known)}.")
                raise InputError(f"--heads: head {name!r} has the unknown setting {key!r}. {hint}")
    return found


def _refuse_twice(text: str) -> None:
    """Python keeps the last of two equal keys in silence."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return  # reported where the text is read
    names = [getattr(key, "value", None) for key in tree.keys] if isinstance(tree, ast.Dict) else []
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise InputError(f"--heads: {', '.join(twice)} is given twice. Heads need different names.")


def own_keys(settings: Mapping[str, Any], where: str) -> dict[str, str]:
    """Keys of the labels that a head names itself: ``energy_key`` …, then ``info_keys`` and ``arrays_keys``."""
    keys = {name: settings[name] for name in KEY_OPTIONS if settings.get(name) is not None}
    for place, per_atom in (("info_keys", False), ("arrays_keys", True)):
        named = settings.get(place) or {}
        if not isinstance(named, dict):
            raise InputError(f"--heads: {where}{place} is {named!r}; expected label: key, as {{'energy': 'E_dft'}}.")
        for name, key in named.items():
            if name in LABELS and LABELS[name].per_atom != per_atom:
                other = "arrays_keys" if LABELS[name].per_atom else "info_keys"
                raise InputError(f"--heads: {where}{name} belongs into {other}, not into {place}.")
            if name != "head":
                keys[f"{name}_key"] = key
    return keys


def _embedding_keys(specs: Mapping[str, Any]) -> dict[str, str]:
    """Keys of labels that ``embedding_specs`` names by other entries of the files."""
    return {f"{name}_key": spec["key"] for name, spec in specs.items() if name in LABELS and spec.get("key")}


def _head(
    name: str, values: Mapping[str, Any], keys: dict[str, str], head_key: str, r_max: float | None, where: str
) -> Head:
    """One head from its values by mace's names; ``r_max``: the cut-off that statistics must be of."""
    values, notes = dict(values), list[str]()
    if values["statistics_file"] is not None:
        values |= _statistics(values["statistics_file"], values, r_max, where, notes)
    files = {kind: _paths(values[f"{kind}_file"], f"--{kind}_file: {where}") for kind in ("train", "valid", "test")}
    if not files["train"]:
        raise InputError(f"--train_file: {where}there are no structures to train on. Give train_file.")
    chosen = {setting: read_value(setting, values[setting], where) for setting in _FORMS}
    if not files["valid"] and not 0 < (chosen["valid_fraction"] or 0) < 1:
        expected = _FORMS["valid_fraction"][1]
        raise InputError(f"--valid_fraction: {where}expected {expected}, got {values['valid_fraction']!r}.")
    return Head(
        name=name,
        train_files=files["train"],
        valid_files=files["valid"],
        test_files=files["test"],
        test_dir=values["test_dir"],
        keep_isolated_atoms=bool(values["keep_isolated_atoms"]),
        keys=resolve_keys(keys),
        head_key=head_key,
        compute_avg_num_neighbors=bool(values["compute_avg_num_neighbors"]),
        notes=notes,
        **chosen,
    )


def _paths(value: Any, where: str) -> list[str]:
    """Paths from one, a list of them, or a list as text."""
    if value is None:
        return []
    if isinstance(value, str) and value.strip().startswith("["):
        value = literal(value, where, "a file or a list as in ['a.xyz', 'b.xyz']")
    paths = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(path, str | Path) and str(path) for path in paths):
        raise InputError(f"{where}expected a file or a list of files, got {value!r}.")
    return [str(path) for path in paths]


def read_value(setting: str, value: Any, where: str = "") -> Any:
    """A setting of a head as it was given, or as text; None if it was not.

    Of ``E0s``, which may be in a JSON file, the word that says where the energies come from stays.

    InputError for what it cannot be.
    """
    if value is None or (setting == "E0s" and isinstance(value, str) and value.lower() in E0S_FROM):
        return value if value is None else value.lower()
    (kind, expected), name = _FORMS[setting], f"--{setting}: {where}"
    if setting == "E0s" and isinstance(value, str) and value.endswith(".json"):
        value = read_json(value, name)
    value = literal(value, name, expected)
    try:
        return pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError:
        raise InputError(f"{name}expected {expected}, got {value!r}.") from None


def _statistics(
    path: str, values: Mapping[str, Any], r_max: float | None, where: str, notes: list[str]
) -> dict[str, Any]:
    """What mace_prepare_data found in the training set, in place of looking again."""
    name = f"--statistics_file: {where}"
    found = read_json(path, name)
    needed = ("atomic_numbers", "atomic_energies", "avg_num_neighbors", "mean", "std")
    if not isinstance(found, dict) or (missing := [key for key in needed if key not in found]):
        what = f"it lacks {', '.join(missing)}" if isinstance(found, dict) else "it is not a dictionary"
        raise InputError(f"{name}{path} is not what mace_prepare_data writes: {what}.")
    made_with = found.get("r_max")
    if made_with is not None and r_max is not None and abs(float(made_with) - r_max) > 1e-9:
        raise InputError(
            f"{name}{path} was made with r_max {made_with}, and this run has {r_max}: its avg_num_neighbors does not "
            "hold. Give that r_max, or run mace_prepare_data again."
        )
    energies = found["atomic_energies"]
    if isinstance(energies, str):
        # With numpy 2 mace_prepare_data writes np.int64(1): np.float64(-13.6), which is not a literal.
        energies = re.sub(r"np\.\w+\(([^()]*)\)", r"\1", energies)
    taken = {"atomic_numbers": found["atomic_numbers"], "E0s": energies}
    for setting in ("mean", "std", "avg_num_neighbors"):
        value = found[setting][0] if isinstance(found[setting], list) and len(found[setting]) == 1 else found[setting]
        taken[setting] = value if values[setting] is None or setting == "avg_num_neighbors" else values[setting]
    notes.append(f"{where}elements, E0s, mean, std and avg_num_neighbors from {path}")
    return taken | {"compute_avg_num_neighbors": False}

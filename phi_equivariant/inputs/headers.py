"""Comment lines of extended XYZ, looked at beside ase: what would be read as something else is refused.

ase takes a comment line as ``key=value`` pairs and never complains: an empty value swallows the next pair, a key in
other letters is a key of the user's own. Here the line is divided by the same rules, and what they do is judged.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from phi_equivariant.errors import InputError

#: Names that mean the cell, the periodic directions or the columns, whatever their capitals, hyphens and underscores.
CELL = frozenset({"lattice", "cell", "box", "unitcell", "latticevectors", "cellvectors", "supercell", "simulationbox"})
PERIODIC = frozenset({"pbc", "periodic", "periodicity", "periodicboundary", "periodicboundaryconditions"})
COLUMNS = re.compile(r"\s*[^\s:]+:[RISL]:[1-9]\d*(:[^\s:]+:[RISL]:[1-9]\d*)*\s*")
#: Names, without capitals and underscores, of numbers that change the energy → the value that changes nothing.
STATE = {"totalcharge": 0.0, "charge": 0.0, "totalspin": 1.0, "spin": 1.0, "multiplicity": 1.0, "spinmultiplicity": 1.0}
LOGICALS = {"t", "f", "true", "false", "0", "1", "0.0", "1.0"}
_ASE_LOGICALS = {"T", "F", "true", "false", "True", "False", "TRUE", "FALSE"}
_PIECE = re.compile(
    r"""(?P<space>\s+)|(?P<equals>=)
    |(?P<quoted>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{(?:\\.|[^}\\])*\}|\[(?:\\.|[^\]\\])*\])
    |(?P<unclosed>["'{\[].*)|(?P<escaped>\\.?)|(?P<plain>[^\s="'{\[\\]+)""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?,?")
_UNESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass
class HeaderEntry:
    """One entry of a comment line as ase divides it.

    Parameters
    ----------
    parts : its text, divided at the equals signs outside quotes; the first part is the key
    quoted : whether any part stood in quotes or brackets
    gap : whether white space stands between the first equals sign and the value
    emptied : whether the value begins with quotes that hold nothing
    hidden : texts in quotes or brackets that begin in the middle of a word
    escaped_space : whether a backslash makes white space a part of it
    """

    parts: list[str] = field(default_factory=lambda: [""])
    quoted: bool = False
    gap: bool = False
    emptied: bool = False
    hidden: list[str] = field(default_factory=list)
    escaped_space: bool = False

    @property
    def key(self) -> str:
        """The key."""
        return self.parts[0]

    @property
    def value(self) -> str | None:
        """The text of the value; None for a key alone."""
        return "=".join(self.parts[1:]) if len(self.parts) > 1 else None


def letters(name: str) -> str:
    """A name without capitals, white space, underscores and hyphens, by which misspelt keys are recognised."""
    return re.sub(r"[\s_-]", "", name).lower()


def check_header(line: str, where: str, names: Iterable[str] = ()) -> dict[str, str | None]:
    """Find out whether ase reads a comment line as whoever wrote it meant.

    Parameters
    ----------
    line : comment line of a frame
    where : the frame's name in messages
    names : keys of labels that will be read, beside those of the format and of the total charge

    Returns
    -------
    {key: text of the value}, None for a key alone

    Raises
    ------
    InputError
        For a key without a value that swallows the next, quotes that are not closed or close too late, entries that are
        not separated, a value of several numbers without quotes, two values of one key, periodic directions that are
        not logical, columns that cannot be told apart, and keys for the cell, the periodic directions or the columns
        that ase does not know.
    """
    known = {"lattice", "pbc", "properties", *STATE, "configtype", *map(letters, names)}
    entries = _entries(line.strip(), where)
    _check_swallowed(entries, where, known)
    header = {entry.key: entry.value for entry in entries}
    # In a line without columns words are rather a remark than entries.
    strict = "Properties" in header or "Lattice" in header
    _check_repeated(entries, where, known, strict)
    _check_unquoted(entries, where, known, strict)
    _check_cell_and_columns(header, where)
    if header.get("pbc") is not None:
        _check_pbc(header["pbc"] or "", where)
    if header.get("Properties") is not None:
        _check_columns(header["Properties"] or "", where)
    return header


def _entries(line: str, where: str) -> list[HeaderEntry]:
    """The line divided as ase does; InputError for quotes that are not closed and swallow an entry."""
    entries, current = [], HeaderEntry()
    for piece in _PIECE.finditer(line):
        kind, text = piece.lastgroup, piece.group()
        if kind == "space":
            if current.parts[-1]:
                entries.append(current)
                current = HeaderEntry()
            else:
                current.gap |= len(current.parts) > 1
        elif kind == "equals":
            if current.parts == [""] and entries:
                current = entries.pop()  # "key = value"
            current.parts.append("")
        else:
            if kind == "unclosed" and "=" in text:
                raise InputError(
                    f"{where}: {text[0]} in the comment line is not closed, so that all that follows would be one "
                    f"value: {_short(text)}. Close or remove it."
                )
            if kind == "quoted":
                current.quoted = True
                if current.parts[-1]:
                    current.hidden.append(text[1:-1])
                elif len(text) == 2:
                    current.emptied |= len(current.parts) > 1
                text = text[1:-1]
            elif kind == "escaped":
                current.escaped_space |= text[1:].isspace()
            elif kind == "unclosed":
                text = text[1:]
            current.parts[-1] += _UNESCAPED.sub(r"\1", text)
    return [*entries, current] if current.parts != [""] else entries


def _check_swallowed(entries: list[HeaderEntry], where: str, known: set[str]) -> None:
    for entry in entries:
        key, value = entry.key, entry.value
        if entry.value and ((entry.emptied and entry.gap) or (entry.gap and len(entry.parts) > 2)):
            raise InputError(
                f"{where}: {key} has no value in the comment line, and ase takes what follows for it: "
                f"{key}={_short(entry.value)!r}. Give {key} a value or take it out."
            )
        inside = [text for text in entry.hidden if re.search(r"\w\s*=", text)]
        if inside or (entry.escaped_space and len(entry.parts) > 2):
            swallowed = inside[0] if inside else value or ""
            raise InputError(
                f"{where}: in the comment line a quote, bracket or backslash within {key!r} makes one value of "
                f"{_short(swallowed)!r}. Quote the whole value, or remove it."
            )
        parts = entry.parts[1:-1] if value is not None and not entry.quoted else []
        joined = [name for part in parts if (name := re.search(r"[,;|]([A-Za-z_]\w*)$", part))]
        if value is None and entry.quoted:
            joined = [name for name in re.finditer(r"([A-Za-z_]\w*)\s*=", key)]
        if named := [name.group(1) for name in joined if letters(name.group(1)) in known]:
            raise InputError(
                f"{where}: {named[0]} in the comment line is read as a part of {_short('='.join(entry.parts))!r}. "
                "Separate the entries by spaces, and quote values, not the line."
            )


def _check_repeated(entries: list[HeaderEntry], where: str, known: set[str], strict: bool) -> None:
    first: dict[str, str | None] = {}
    for entry in entries:
        before = first.setdefault(entry.key, entry.value)
        if before != entry.value and (strict or letters(entry.key) in known):
            raise InputError(
                f"{where}: the comment line has {entry.key} twice, {_short(str(before))!r} and "
                f"{_short(str(entry.value))!r}. Keep one."
            )


def _check_unquoted(entries: list[HeaderEntry], where: str, known: set[str], strict: bool) -> None:
    for entry, following in zip(entries, entries[1:], strict=False):
        word, value = following.key, entry.value
        alone = following.value is None and not following.quoted
        if alone and value is not None and not entry.quoted and (strict or letters(entry.key) in known):
            numbers = _NUMBER.fullmatch(value) and _NUMBER.fullmatch(word)
            logicals = letters(entry.key) in PERIODIC and word.lower() in LOGICALS
            if numbers or logicals:
                raise InputError(
                    f"{where}: {entry.key}={value} in the comment line is followed by {word}: a value of several words "
                    f'needs quotes, as in {entry.key}="{value} {word}".'
                )
        name = entry.key.removesuffix(":")
        usual = STATE.get(letters(name)) if value is None and name != entry.key else None
        if usual is not None and _NUMBER.fullmatch(word) and float(word.rstrip(",").lower().replace("d", "e")) != usual:
            raise InputError(
                f"{where}: the comment line says {entry.key} {word}, which ase does not read. Write {name}={word}."
            )


def _check_cell_and_columns(header: dict[str, str | None], where: str) -> None:
    """InputError for keys that look like Lattice, pbc and Properties, and are none of them."""
    for key, value in header.items():
        words = re.split(r"[\s,]+", (value or "").strip(" []()"))
        if key in ("Lattice", "pbc", "Properties") or value is None:
            continue
        if letters(key) in CELL and all(map(_NUMBER.fullmatch, words)):
            if "Lattice" in header and letters(key) == "lattice" and value != header["Lattice"]:
                raise InputError(f"{where}: the comment line has Lattice and {key}, which differ. Keep Lattice.")
            opened = header.get("pbc") is not None and not _periodic(header["pbc"] or "")
            if "Lattice" not in header and not opened:
                raise InputError(
                    f"{where}: the cell in the comment line is called {key!r}, which ase does not read: the structure "
                    'would be open. Call it Lattice, as in Lattice="10 0 0 0 10 0 0 0 10", or write pbc="F F F" beside '
                    "it if the structure is open."
                )
        named_pbc = letters(key) == "pbc" or (
            letters(key) in PERIODIC and all(word.lower() in LOGICALS for word in words)
        )
        if named_pbc and header.get("pbc") != value:
            raise InputError(
                f"{where}: the periodic directions in the comment line are called {key!r}, which ase does not read. "
                'Call them pbc, as in pbc="T T F".'
            )
        if COLUMNS.fullmatch(value) and "Properties" not in header:
            raise InputError(
                f"{where}: the columns in the comment line are called {key!r}, which ase does not read: all but "
                f"elements and positions would be lost. Call them Properties, as in Properties={value}."
            )


def _logicals(value: str) -> list[str]:
    text = value.strip()
    if text.startswith("_JSON "):
        text = text.removeprefix("_JSON ").strip().strip("[]")
    return re.findall(r"[^\s,]+", text)


def _periodic(value: str) -> bool:
    """Whether any direction of a pbc that :func:`_check_pbc` accepts is periodic."""
    return any(word.lower() in ("t", "true", "1", "1.0") for word in _logicals(value))


def _check_pbc(value: str, where: str) -> None:
    words = _logicals(value)
    logical = all(word in _ASE_LOGICALS for word in words)
    number = all(word in ("0", "1", "0.0", "1.0") for word in words)
    if len(words) not in (1, 3) or not (logical or number):
        raise InputError(
            f"{where}: pbc is {value!r} in the comment line, which ase takes for periodic in all directions or cannot "
            'read. Write one or three of T and F, as in pbc="T T F".'
        )


def _check_columns(value: str, where: str) -> None:
    fields = value.strip().split(":")
    names = fields[::3]
    wrong = not COLUMNS.fullmatch(value)
    missing = not {"species", "symbols", "Z", "numbers"} & set(names) or not {"pos", "positions"} & set(names)
    if wrong or missing or len(set(names)) < len(names):
        what = "a column twice" if not wrong and not missing else "no species:S:1 or no pos:R:3" if missing else value
        raise InputError(
            f"{where}: Properties has {what} in the comment line; expected name:type:number of columns, with types R, "
            "I, S and L, as in Properties=species:S:1:pos:R:3:forces:R:3."
        )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"

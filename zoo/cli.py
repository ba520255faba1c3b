"""``phi-zoo``: list, info, try, download, verify, export and add models."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi_equivariant.errors import InputError
from phi_equivariant.files import check_writable
from zoo import sizes, store  # whose modules are imported by the command that asks for them

if TYPE_CHECKING:
    from rich.text import Text


def list_command(args: argparse.Namespace) -> None:
    """Sizes, then trained models: what they are for, elements, charges, errors (of the bare host)."""
    fresh = {name: sizes.ARCHITECTURES[name].description for name in sizes.matching(sizes.ARCHITECTURES, args.filter)}
    known, rows = store.find.entries(args.offline), []
    for name in sizes.matching(known, args.filter):
        entry = known[name]
        size = sum(info.size for info in entry.files.values())
        where = f"{size / 1e6:.2f} MB, {store.catalogue.place_of(entry)}"
        rows.append((name, "\n".join([*store.catalogue.summary_lines(entry), where])))
    if not fresh and not rows:
        raise InputError(f"no size and no trained model has {args.filter!r} in its name; phi-zoo list shows all.")
    if fresh:
        show(fresh.items(), "fresh: create_model", "what it is")
    if rows:
        show(rows, "trained: load_pretrained", "what for; test RMSE (without Φ)")


def info_command(args: argparse.Namespace) -> None:
    """What is known of a model: errors and use first, configuration last."""
    if store.find.is_path(args.name):
        folder = store.find.locate(args.name)
        info: dict[str, Any] = {"place": str(folder), "card": store.card.read(folder / "card.yaml")}
    else:
        info = store.catalogue.model_info(args.name, args.offline)
    fresh = info.get("kind") == "architecture"
    info["use"] = f"create_model({args.name!r}, elements=[1, 6, 8])" if fresh else f"load_pretrained({args.name!r})"
    known = {key: value for key, value in info.items() if value not in (None, [], {}) and key != "card"}
    show(store.card.lines_of((info.get("card") or {}) | known))


def try_command(args: argparse.Namespace) -> None:
    """Relax a structure with a trained model: energy, charges, dipole, and a page to look at."""
    from zoo import trial

    check_writable(args.page, "--page")
    if args.page.exists() and os.path.exists(args.structure) and args.page.samefile(args.structure):
        raise InputError(f"--page is {args.page}, which holds the structure; name another file.")
    found = trial.run(args.name, args.structure, args.total_charge, args.fmax, args.steps, args.offline)
    trial.write_page(args.page, args.name, args.structure, found)
    show([*trial.lines(args.name, found), ("page", str(args.page))])


def download_command(args: argparse.Namespace) -> None:
    """Put trained models into the cache."""
    for name in args.names:
        entry = store.find.find(name, args.offline, refresh=not args.offline)
        say(f"{name}: {store.find.files_of(entry, args.offline)}")


def verify_command(args: argparse.Namespace) -> None:
    """Sizes and sums, loading, and the reference: of the models named, or of all that are on this machine."""
    names, wrong = args.names or sorted(store.catalogue.on_this_machine(args.offline)), []
    for name in names:
        try:
            folder = store.find.locate(name, args.offline)
            store.pretrained.load_folder(folder)
            say(f"{name}: right ({folder})")
        except InputError as error:
            wrong.append(name)
            say(f"{name}: wrong. {error}")
    if wrong:
        raise InputError(f"{len(wrong)} of {len(names)} models are not right: {', '.join(wrong)}.")
    if not names:
        say("no trained model is on this machine yet; phi-zoo download gets one.")


def export_command(args: argparse.Namespace) -> None:
    """A folder to share from a finished run."""
    stated = {key: getattr(args, key) for key in ("description", "charge_states", *store.card.STATED)}
    folder = store.export.export(args.run, args.folder, args.structure, args.bare, args.more, **stated)
    content = store.card.read(folder / "card.yaml")
    say(f"{folder} holds the model, its card and its reference.")
    if missing := [name for name in store.card.STATED if not content.get(name)]:
        say(f"Write into {folder / 'card.yaml'} what only you know: {', '.join(missing)}.")


def add_command(args: argparse.Namespace) -> None:
    """A folder into a registry file."""
    name = store.publish.add(args.folder, args.registry, args.url, args.replace)
    say(f"{args.registry}: {name} added. Others load it with PHI_ZOO_URL set to the registry's folder or address.")


def show(rows: Iterable[Sequence[str]], *header: str) -> None:
    """A table of plain text; the first column is never broken."""
    from rich import console, table

    made = table.Table(*header, show_header=bool(header), box=None, pad_edge=False)
    for row in rows:
        made.add_row(*map(plain, row))
    if made.columns:
        made.columns[0].no_wrap, made.columns[-1].overflow = True, "fold"
    console.Console(width=None if sys.stdout.isatty() else 80).print(made)


def plain(text: str) -> "Text":
    """A text from outside, which may style nothing and steer no terminal."""
    from rich.text import Text

    return Text("".join(sign if sign.isprintable() or sign == "\n" else "�" for sign in text))


def say(text: str) -> None:
    """A line on the terminal."""
    print(plain(text), flush=True)


class Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        """Prints and leaves."""
        from phi_equivariant import __version__

        print(f"{parser.prog} {__version__}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="phi-zoo",
        description="Models with Φ: named sizes, and trained ones to share.",
        epilog="example: phi-zoo info phi-mace-small.ala3_gfn2",
    )
    top.add_argument("--offline", action="store_true", help="never use the network")
    top.add_argument("--version", action=Version, nargs=0, help="show the version and leave")
    commands = top.add_subparsers(dest="command", required=True, metavar="list|info|try|download|verify|export|add")

    def command(name: str, function: Callable[[argparse.Namespace], None]) -> Callable[..., argparse.Action]:
        made = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        made.add_argument("--offline", action="store_true", default=argparse.SUPPRESS, help="never use the network")
        made.set_defaults(function=function)
        return made.add_argument

    command("list", list_command)("filter", nargs="?", help="part of the names, or a pattern such as 'phi-mace-*'")
    command("info", info_command)("name", help="of a size or a trained model, or its folder (./name)")
    option = command("try", try_command)
    option("name", help="of a trained model, or its folder (./name)")
    option("structure", metavar="FILE_OR_SMILES", help="a file that ase reads, or a molecule such as 'CC(=O)[O-]'")
    option("--total_charge", type=float, metavar="Q", help="in e, in place of that of the file or of the SMILES")
    option("--fmax", type=float, default=0.02, help="largest force that is left, in eV/Å (%(default)s)")
    option("--steps", type=int, default=500, help="of the relaxation at most (%(default)s)")
    option("--page", type=Path, default=Path("phi-zoo-try.html"), help="the page to write (%(default)s)")
    command("download", download_command)("names", nargs="+", metavar="name")
    command("verify", verify_command)("names", nargs="*", metavar="name", help="name, folder (./name) or address")
    option = command("export", export_command)
    option("run", type=Path, help="folder of a finished run of phi-mace-train")
    option("folder", type=Path, help="folder to make, named phi-<host>-<size>.<data>")
    option("--structure", metavar="FILE", help="its first structure becomes the reference (default: a small cluster)")
    option("--bare", nargs="+", default=[], metavar="RUN", help="runs of the bare host, for the card's errors")
    option("--more", nargs="+", default=[], metavar="RUN", help="further runs of this model, with other seeds")
    option("--description")
    option("--licence", help="of the weights")
    option("--level_of_theory", help="functional or method of the labels")
    option("--not_for", help="what the model must not be used for")
    option("--charge_states", nargs="+", type=int, metavar="Q", help="total charges it was trained on")
    option = command("add", add_command)
    option("folder", type=Path, help="made by phi-zoo export")
    option("registry", type=Path, help="registry.json, made where it is not there")
    option("--url", action="append", default=[], help="address of a folder with the files; without, they are copied")
    option("--replace", action="store_true", help="replace another model of this name")
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Entry point: exit status 0, 2 for unusable input, 130 when interrupted."""
    args = parser().parse_args(words)
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_time=False)  # results alone go to standard output
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("zoo").setLevel(logging.INFO)  # what other libraries tell of themselves is left out
    try:
        args.function(args)
    except InputError as error:
        print(f"phi-zoo: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"phi-zoo: {error.filename or 'a file'} cannot be used: {error.strerror or error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("phi-zoo: interrupted; nothing half done was kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

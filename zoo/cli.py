"""``phi-zoo``: list, info, download, verify, export and add models."""

import argparse
import logging
import sys
import warnings
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from phi_equivariant.errors import InputError
from zoo.architectures import ARCHITECTURES, matching
from zoo.store import card, export, publish
from zoo.store.catalogue import model_info, place_of
from zoo.store.pretrained import entries, files_of, find, is_path, load_folder, locate

console = Console()
if not console.is_terminal:
    console = Console(width=140)


def list_command(args):
    """Sizes, then trained models."""
    table = Table("name", "what it is", "size", "where")
    for name in matching(ARCHITECTURES, args.filter):
        table.add_row(name, ARCHITECTURES[name].description, "", "fresh: create_model")
    known = entries(args.offline)
    for name in matching(known, args.filter):
        size = sum(info.size for info in known[name].files.values())
        table.add_row(name, plain(known[name].description), f"{size / 1e6:.2f} MB", place_of(known[name]))
    console.print(table)


def info_command(args):
    """Everything that is known of a model."""
    if is_path(args.name):
        path = locate(args.name, args.offline) / "card.yaml"
        if not path.is_file():
            raise InputError(f"{path.parent} has no card.yaml; phi-zoo export makes a folder with one.")
        info = {"folder": str(path.parent), "card": card.read(path)}
    else:
        info = model_info(args.name, args.offline)
    shown = info.pop("card", None)
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in info.items():
        text = "\n".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
        text = ", ".join(text) if isinstance(text, list) else str(text)
        table.add_row(key, plain(text))
    for section, text in card.lines_of(shown) if shown else ():
        table.add_row(plain(section), plain(text))
    console.print(table)


def download_command(args):
    """Put trained models into the cache."""
    for name in args.names:
        say(f"{name}: {files_of(find(name, args.offline, refresh=True), args.offline)}")


def verify_command(args):
    """Sizes and sums, loading, and the reference: of the models named, or of all that are on this machine."""
    names = args.names
    if not names:
        known = entries(offline=True) if args.offline else entries()
        names = [name for name, entry in known.items() if place_of(entry) not in ("remote", "missing")]
    wrong = []
    for name in names:
        try:
            folder = locate(name, args.offline)
            load_folder(folder)
            say(f"{name}: right ({folder})")
        except InputError as error:
            wrong.append(name)
            say(f"{name}: wrong. {error}")
    if wrong:
        raise InputError(f"{len(wrong)} of {len(names)} models are not right: {', '.join(wrong)}.")
    if not names:
        say("no trained model is on this machine yet; phi-zoo download gets one.")


def export_command(args):
    """A folder to share from a finished run."""
    stated = {key: getattr(args, key) for key in ("description", "licence", "level_of_theory", "not_for")}
    if args.charge_states:
        stated["charge_states"] = args.charge_states
    folder = export.export(args.run, args.folder, args.structure, args.bare, args.more, **stated)
    content = card.read(folder / "card.yaml")
    say(f"{folder} holds the model, its card and its reference.")
    if missing := [name for name in card.STATED if not content.get(name)]:
        say(f"Write into {folder / 'card.yaml'} what only you know: {', '.join(missing)}.")


def add_command(args):
    """A folder into a registry file."""
    entry = publish.add(args.folder, args.registry, args.url, args.replace)
    say(
        f"{args.registry}: {entry.name} added. Others load it with PHI_ZOO_URL set to the registry's folder or address."
    )


def plain(text):
    """A text from outside, which may style nothing and steer no terminal."""
    return Text(card.printable(text))


def say(text):
    """A line on the terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def parser():
    """The command line."""
    top = argparse.ArgumentParser(prog="phi-zoo", description="Models with Φ: named sizes, and trained ones to share.")
    top.add_argument("--offline", action="store_true", help="never use the network")
    commands = top.add_subparsers(dest="command", required=True, metavar="list|info|download|verify|export|add")

    def command(name, function):
        made = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        made.add_argument("--offline", action="store_true", default=argparse.SUPPRESS, help="never use the network")
        made.set_defaults(function=function)
        return made.add_argument

    command("list", list_command)("filter", nargs="?", help="part of the names, or a pattern such as 'phi-mace-*'")
    command("info", info_command)("name", help="of a size or a trained model, or its folder (./name)")
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


def main(words=None):
    """Entry point: exit status 0, 2 for unusable input, 130 when interrupted."""
    args = parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_time=False)])
    warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support")
    try:
        args.function(args)
    except InputError as error:
        print(f"phi-zoo: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"phi-zoo: {error.filename or 'a file'} cannot be used: {error.strerror or error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "phi-zoo: interrupted; a broken download goes on where it was when the command is given again.",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

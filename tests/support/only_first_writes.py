"""The training command, as torchrun starts it, where only the first process may make or change files in a folder."""

import os
import sys

from training.train import main

folder, *line = sys.argv[1:]


def forbid(event, arguments):
    if event not in ("open", "os.mkdir", "os.rename", "os.remove"):
        return
    writes = event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes and str(arguments[0]).startswith(folder):
        raise AssertionError(f"process {os.environ['RANK']} writes: {event} {arguments}")


if os.environ["RANK"] != "0":
    sys.addaudithook(forbid)
sys.exit(main(line))

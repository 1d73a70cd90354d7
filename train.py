"""
Pre-trains LangCell: `python train.py CONFIG.yaml [key=value ...]`, alone or under `accelerate launch`. A run that was
stopped or killed goes on when the same command is given again.
"""

import os
import sys
from typing import TextIO

from modeling_langcell import InputError
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.run import TrainingStopped, pretrain

TERMINATED = 128 + 15  #: Exit status of what SIGTERM ended.


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, PretrainingConfig.__doc__, sep="\n")
        return 0 if arguments else 2
    try:
        output = pretrain(PretrainingConfig.from_yaml(arguments[0], arguments[1:]))
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except TrainingStopped as stopped:
        say(stopped, sys.stderr)
        return TERMINATED
    say(f"Checkpoint: {output}", sys.stdout)
    return 0


def say(what: object, where: TextIO) -> None:
    """Once, however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        print(what, file=where)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""
Pre-trains LangCell: `python train.py CONFIG.yaml [key=value ...]`, alone or under `accelerate launch`. The same command
resumes a run that was stopped or killed.
"""

import os
import sys
from typing import TextIO

from modeling_langcell import InputError
from modeling_langcell.io.printable import one_line
from modeling_langcell.io.stopping import Stopped, stopping
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.run import TrainingStopped, pretrain


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, PretrainingConfig.__doc__, sep="\n")
        return 0 if arguments else 2
    try:
        with stopping():
            output = pretrain(PretrainingConfig.from_yaml(arguments[0], arguments[1:]))
    except InputError as error:
        print(one_line(f"Error: {error}"), file=sys.stderr)
        return 2
    except TrainingStopped as stopped:
        print_once(stopped, sys.stderr)
        return stopped.exit_code
    except Stopped as stopped:
        print_once(f"{stopped}. The same command resumes.", sys.stderr)
        return stopped.exit_code
    print_once(f"Checkpoint: {output}", sys.stdout)
    return 0


def print_once(message: object, stream: TextIO) -> None:
    """Prints a message once, however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        print(one_line(message), file=stream)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

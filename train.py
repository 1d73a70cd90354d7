"""
Pre-trains LangCell: `python train.py CONFIG.yaml [key=value ...]`, alone or under `accelerate launch`. A run that was
stopped or killed goes on when the same command is given again.
"""

import sys

from modeling_langcell import InputError
from modeling_langcell.pretraining import TrainingStopped, pretrain
from modeling_langcell.pretraining_config import PretrainingConfig

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
        print(stopped, file=sys.stderr)
        return TERMINATED
    print(f"Checkpoint: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

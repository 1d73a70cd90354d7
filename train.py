"""Pre-trains LangCell: `python train.py CONFIG.yaml [key=value ...]`."""

import sys

from modeling_langcell import InputError
from modeling_langcell.pretraining import PretrainingConfig, pretrain


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, PretrainingConfig.__doc__, sep="\n")
        return 0 if arguments else 2
    try:
        output = pretrain(PretrainingConfig.from_yaml(arguments[0], arguments[1:]))
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"Checkpoint: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""
Pre-trains LangCell as `langcell pretrain` does, for launchers that take a script:
`accelerate launch train.py CONFIG.yaml [key=value ...]`.
"""

import sys

from modeling_langcell.cli import app


def main(arguments: list[str]) -> int:
    try:
        app(["pretrain", *arguments], prog_name="train.py")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

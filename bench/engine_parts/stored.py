"""A checkpoint in fewer bits, rounded to the nearest: what speed is measured on needs no calibration.

python -m bench.engine_parts.stored FOLDER SCHEME TARGET
"""

import argparse
from pathlib import Path

from penstock_compress import Recipe, compress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("scheme")
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    compress(args.folder, args.target, Recipe(args.scheme))


if __name__ == "__main__":
    main()

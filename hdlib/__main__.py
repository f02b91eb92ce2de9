"""The command `hdlib`, which says in a sentence what it lacks where the optimisers alone are installed."""

import sys


def main() -> None:
    try:
        from hdlib.cli import app

        app()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("hdlib"):
            raise
        sys.exit(f"hdlib lacks {error.name}: install it with its extra, pip install '.[book]' in the project's folder.")


if __name__ == "__main__":
    main()

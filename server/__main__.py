"""`python -m wardpose.server`: the commands of a coordinator alone, by which a home starts its processes."""

import sys

from wardpose.server.commands.server import app
from wardpose.shared.errors import WardposeError

if __name__ == "__main__":
    try:
        app()
    except WardposeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)

"""`python -m wardpose.client`: the commands of a hospital alone, by which a site starts its own processes."""

import sys

from wardpose.client.commands.site import app
from wardpose.shared.errors import WardposeError

if __name__ == "__main__":
    try:
        app()
    except WardposeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)

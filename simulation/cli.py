"""The console script `wardpose`: the commands of hospitals, coordinators and researchers under one root."""

import errno
import sys

import typer

from wardpose.client.commands import anonymize, data, evaluate, label, predict, site, vault
from wardpose.server.commands import provision, server
from wardpose.shared.allocator import tune_allocator
from wardpose.shared.commands import export, ledger
from wardpose.shared.errors import WardposeError, one_line
from wardpose.shared.files import FULL
from wardpose.simulation.commands import anonymizer, audit, benchmark, dev, experiment, plan, pretrain, simulate, watch

_REFUSED = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM)  # the machine's matter, not a defect

app = typer.Typer(
    name="wardpose",
    help="Federated, differentially private human-pose learning across hospital sites.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(site.app, name="site", help="What a hospital engineer does.")
app.add_typer(server.app, name="server", help="What a coordinator does.")
_OF_HOSPITALS = (predict, evaluate, label, data, anonymize, vault)
_OF_COORDINATORS = (provision,)
_OF_ALL = (export, ledger, watch)
_OF_RESEARCHERS = (anonymizer, audit, benchmark, dev, experiment, plan, pretrain, simulate)
for _group in (*_OF_HOSPITALS, *_OF_COORDINATORS, *_OF_ALL, *_OF_RESEARCHERS):
    _group.register(app)


def main() -> None:
    """Run the command line; an error that names its cause is one line on standard error and exit code 2."""
    tune_allocator()
    try:
        app()
    except WardposeError as error:
        print(f"{type(error).__name__}: {one_line(error, 4000)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        print(f"{error.filename or 'a file'}: {one_line(error.strerror)}", file=sys.stderr)
        sys.exit(2)

"""`make authority`: the certificate that an existing Traefik trusts, to verify the server."""

from operations.common.console import StopError, make, output
from operations.common.stack import Stack
from operations.host.servers import servers
from settings import names


def authority(stack: Stack) -> None:
    """Print the certificate of the authority of the services, in PEM. It is public."""
    if not stack.settings.tls.internal:
        raise StopError(
            f"{stack.name} has no authority: mlflow:tls.internal is false\n  what it does: docs/operations/tls.md"
        )
    deployed = servers(stack)
    found = deployed.secret(names.AUTHORITY_FILE) if deployed.deployed else None
    if found is None:
        raise StopError(f"{stack.name} is not deployed with mlflow:tls.internal\n  type: {make('up', stack.name)}")
    output(found.decode().rstrip())

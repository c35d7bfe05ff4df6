"""The application that uvicorn serves: MLflow's, by shorter ways, and in a replica with the answers of draining.py.

The environment variable APPLICATION names MLflow's application, as uvicorn's argument; a factory ends with parentheses.
"""

import os
import sys

from draining import answering
from shorter import shorten
from uvicorn.importer import import_from_string


def create():
    """Return the ASGI application."""
    name = os.environ["APPLICATION"]
    application = import_from_string(name.removesuffix("()"))
    if name.endswith("()"):
        application = application()
    if long := shorten(application):
        print(f"application: requests take longer, because MLflow has changed {', '.join(long)}", file=sys.stderr)
    return answering(application) if os.environ.get("LEAVE_SECONDS") else application

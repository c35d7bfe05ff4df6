"""The application that uvicorn serves: MLflow's, by shorter ways, and in a replica with the answers of draining.py.

The environment variable APPLICATION names MLflow's application, as uvicorn's argument; a factory ends with parentheses.
"""

import os


def create():
    """Return the ASGI application."""
    # Imported late: uvicorn is not there when MLflow's other processes import the plugins.
    from draining import answering  # noqa: PLC0415
    from shorter import shorten  # noqa: PLC0415
    from uvicorn.importer import import_from_string  # noqa: PLC0415

    name = os.environ["APPLICATION"]
    application = import_from_string(name.removesuffix("()"))
    if name.endswith("()"):
        application = application()
    shorten(application)
    return answering(application) if os.environ.get("LEAVE_SECONDS") else application

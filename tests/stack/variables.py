"""List the environment variables that an `environment_variables.py` of MLflow defines.

usage: variables.py ENVIRONMENT_VARIABLES_PY. Runs in the MLflow image, on the standard library.
"""

import ast
import sys
from pathlib import Path

ROOT = "_EnvironmentVariable"
"""MLflow's base class; its subclasses in the file count, too."""


def variables(path: Path) -> set[str]:
    """Return the names of all variables that the file defines: the first argument of each call of these classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    classes = _classes(tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node.func) in classes]
    names: set[str] = set()
    for call in calls:
        name = _name(call)
        if name is None:
            message = f"{path}:{call.lineno}: the name of this variable is not a string constant"
            raise ValueError(message)
        names.add(name)
    return names


def _classes(tree: ast.Module) -> set[str]:
    """Return the base class and all its subclasses, in whatever order the file defines them."""
    bases = {
        node.name: {_called(base) for base in node.bases} for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    }
    known = {ROOT}
    while more := {name for name, parents in bases.items() if parents & known} - known:
        known |= more
    return known


def _called(function: ast.expr) -> str | None:
    """Return the last part of the name of a called function or base class: `f`, or `g` of `module.g`."""
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else None


def _name(call: ast.Call) -> str | None:
    """Return the first argument, positional or `name=`, if it is a string constant."""
    named = [keyword.value for keyword in call.keywords if keyword.arg == "name"]
    first = next(iter([*call.args, *named]), None)
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


if __name__ == "__main__":
    print("\n".join(sorted(variables(Path(sys.argv[1])))))

#!/bin/sh
# Resolves all lock files again. usage: make lock
set -eu

# usage: compile PYTHON_VERSION NAME [uv options]
compile() {
    python_version=$1 name=$2
    shift 2
    .venv/bin/uv pip compile --quiet --upgrade --generate-hashes --no-annotate --custom-compile-command "make lock" \
        --python-version "$python_version" "$@" "$name.in" --output-file "$name.txt"
}

main() {
    compile 3.11 requirements --universal
    compile 3.11 requirements-dev --universal
    # For the image: its Python version and system. The hashes cover the wheels of both architectures.
    compile 3.13 mlflow/requirements --python-platform x86_64-manylinux_2_28
    compile 3.13 mlflow/mlflow --python-platform x86_64-manylinux_2_28 --no-deps
}

main "$@"

#!/bin/sh
# Creates the virtual environment in .venv if it is missing or out of date, then runs `python -m operations`.
# Needs a POSIX shell and Python 3.11 with venv, and reports if they are missing. usage: bootstrap.sh VERB
# The next line must work even with Windows line endings, which break every line after it.
case "$(cat "$0")" in *"$(printf '\r')"*) printf '%s\n' "error: the files of this checkout have Windows line endings (CRLF), which shells cannot read" '  type: git ls-files -z | xargs -0 sed -i '"'s/\\r\$//'" >&2 && exit 1 ;; esac #
set -eu

VENV=.venv
PYTHON=${PYTHON:-python3}

# Exits with an error message and what to do. usage: die "error" "what to do"
die() {
    printf '%s\n' "error: $1" "  $2" >&2
    exit 1
}

# Reports a missing stack file before packages are installed.
check_stack() {
    [ -f "Pulumi.${STACK:-dev}.yaml" ] || [ "$1" = init ] && return
    known=$(for file in Pulumi.*.yaml; do file=${file#Pulumi.} && printf '%s ' "${file%.yaml}"; done)
    die "STACK=${STACK:-dev}: there is no Pulumi.${STACK:-dev}.yaml (stacks: ${known% })" \
        "for a new stack, type: make init STACK=${STACK:-dev}"
}

# Refuses to install into another user's checkout. Verbs that only read can be used in it.
check_owner() {
    [ -w . ] && { [ ! -e "$VENV" ] || [ -w "$VENV" ]; } && return
    die "you ($(id -un)) cannot write to this checkout: it belongs to $(stat -c %U . 2>/dev/null || stat -f %Su .)" \
        "clone it (git clone $(pwd) ~/mlflow), and use its Pulumi.${STACK:-dev}.yaml and passphrase: docs/operations/state-and-passphrase.md#a-second-person"
}

check_python() {
    command -v "$PYTHON" >/dev/null 2>&1 ||
        die "$PYTHON is not installed" "Debian and Ubuntu: apt-get install python3 python3-venv; or set PYTHON=/path/to/python3.11"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "this project needs Python 3.11 or newer, but $PYTHON is $("$PYTHON" -V)" "install it, then set PYTHON=/path/to/python3.11"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$PYTHON has no venv module" "Debian and Ubuntu: apt-get install python3-venv"
}

# usage: up_to_date LOCK_FILE
up_to_date() {
    [ -x "$VENV/bin/python" ] && cmp -s "$1" "$VENV/$(basename "$1").installed" && has_same_python
}

# Fails after an upgrade of the host's Python, for which nothing is installed.
has_same_python() {
    for folder in "$VENV"/lib/python3.*; do
        [ "$("$VENV/bin/python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')" = "${folder##*/}" ] && return
    done
    return 1
}

# Installs the packages of a lock file, and verifies their hashes. usage: install LOCK_FILE
install() {
    up_to_date "$1" && return
    check_owner
    check_python
    echo "installing $1 into $VENV (a minute, once)" >&2
    # An interrupted creation leaves an environment with Python, but without pip.
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear "$VENV" ||
        die "$VENV could not be created" "type: rm -r $VENV, then try again"
    # The user's pip.conf may set other target folders, so set each of them here. Its package index is used.
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
        --no-user --target= --prefix="$PWD/$VENV" --root=/ -r "$1" ||
        die "could not install the packages of $1" \
            "check that pip reaches its package index (see: pip config list, PIP_CERT, HTTPS_PROXY), then try again"
    # Last, so that an interrupted installation is repeated.
    cp "$1" "$VENV/$(basename "$1").installed"
}

main() {
    # Read and write UTF-8 in every locale.
    export PYTHONUTF8=1
    # The user's settings for Python and pip would also affect this environment and Pulumi's.
    unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONUSERBASE PYTHONPLATLIBDIR PYTHONSAFEPATH PYTHONOPTIMIZE
    unset PYTHONINSPECT PYTHONWARNINGS PYTHONDEVMODE
    unset PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_CONSTRAINT PIP_REQUIRE_VIRTUALENV
    unset CDPATH
    cd "$(dirname "$0")/.."
    if [ "${1:-}" = check ]; then
        install requirements-dev.txt
        exec sh operations/check.sh
    fi
    # The development set contains the other one.
    if ! up_to_date requirements-dev.txt && ! up_to_date requirements.txt; then
        check_python
        check_stack "${1:-}"
        install requirements.txt
    fi
    exec "$VENV/bin/python" -m operations "$@"
}

main "$@"

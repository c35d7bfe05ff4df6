#!/bin/sh
# Makes the virtual environment in .venv if it is missing or out of date, then hands over to `python -m operations`.
# Needs a POSIX shell and Python 3.11 with venv; says so where they are not. usage: bootstrap.sh VERB
# First, and so that it can be read even then: line ends of Windows stop every line below.
case "$(cat "$0")" in *"$(printf '\r')"*) printf '%s\n' "error: the files of this checkout have the line ends of Windows (CRLF), which no shell reads" '  type: git ls-files -z | xargs -0 sed -i '"'s/\\r\$//'" >&2 && exit 1 ;; esac #
set -eu

VENV=.venv
PYTHON=${PYTHON:-python3}

# Ends with what is wrong and what to type. usage: die "wrong" "to type"
die() {
    printf '%s\n' "error: $1" "  $2" >&2
    exit 1
}

# A name that has no file is told now, and not after the packages were installed.
check_stack() {
    [ -f "Pulumi.${STACK:-dev}.yaml" ] && return
    known=$(for file in Pulumi.*.yaml; do file=${file#Pulumi.} && printf '%s ' "${file%.yaml}"; done)
    die "STACK=${STACK:-dev}: there is no Pulumi.${STACK:-dev}.yaml (there are: ${known% })" \
        "for a new environment: copy one of them to Pulumi.${STACK:-dev}.yaml, without its encryptionsalt and secure: entries"
}

# Somebody else's checkout can be used for what only looks, and not be installed into.
check_owner() {
    [ -w . ] && { [ ! -e "$VENV" ] || [ -w "$VENV" ]; } && return
    die "this checkout is not yours to write to: it belongs to $(stat -c %U . 2>/dev/null || stat -f %Su .), and you are $(id -un)" \
        "clone one of your own (git clone $(pwd) ~/mlflow), with its Pulumi.${STACK:-dev}.yaml and passphrase: docs/operations/state-and-passphrase.md#a-second-person"
}

check_python() {
    command -v "$PYTHON" >/dev/null 2>&1 ||
        die "there is no $PYTHON" "Debian and Ubuntu: apt-get install python3 python3-venv; or set PYTHON=/path/to/python3.11"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "needs Python 3.11 or newer, found $("$PYTHON" -V)" "install one, and set PYTHON=/path/to/it"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        die "this Python has no venv module" "Debian and Ubuntu: apt-get install python3-venv"
}

# usage: up_to_date LOCK_FILE
up_to_date() {
    [ -x "$VENV/bin/python" ] && cmp -s "$1" "$VENV/$(basename "$1").installed"
}

# Installs a lock file; every package is checked against its hash. usage: install LOCK_FILE
install() {
    up_to_date "$1" && return
    check_owner
    check_python
    echo "installing $1 into $VENV (a minute, once)" >&2
    # One that was cut short has a Python and no pip.
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear "$VENV" ||
        die "$VENV could not be made" "remove it (rm -r $VENV) and try again"
    # A person's pip.conf may install elsewhere, so each place is named; where packages come from is its own to say.
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
        --no-user --target= --prefix="$PWD/$VENV" --root=/ -r "$1" ||
        die "the packages of $1 could not be installed" "check that a package index is reachable (pip config list; PIP_CERT and HTTPS_PROXY), then try again"
    # Last, so that an installation that was cut short is done again.
    cp "$1" "$VENV/$(basename "$1").installed"
}

main() {
    # What is read and told is UTF-8, whatever the locale.
    export PYTHONUTF8=1
    # A person's own Python, for other programs: each of them would reach into this one, and into Pulumi's.
    unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONUSERBASE PYTHONPLATLIBDIR PYTHONSAFEPATH PYTHONOPTIMIZE
    unset PYTHONINSPECT PYTHONWARNINGS PYTHONDEVMODE
    unset PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_CONSTRAINT PIP_REQUIRE_VIRTUALENV
    unset CDPATH
    cd "$(dirname "$0")/.."
    if [ "${1:-}" = check ]; then
        install requirements-dev.txt
        shift
        exec sh operations/check.sh "$@"
    fi
    # The development set contains the other one.
    if ! up_to_date requirements-dev.txt && ! up_to_date requirements.txt; then
        check_python
        check_stack
        install requirements.txt
    fi
    exec "$VENV/bin/python" -m operations "$@"
}

main "$@"

#!/bin/sh
# Runs all checks of `make test`, the fastest first. usage: check.sh; ARGS has options of pytest and files of tests
set -eu

BIN=.venv/bin

step() {
    echo "==> $*" >&2
}

# Lists every tracked shell file.
shell_files() {
    git ls-files '*.sh' .ci/run
}

lint() {
    # mypy takes longer than all others together.
    "$BIN/mypy" --num-workers 2 --no-error-summary >.mypy.log 2>&1 &
    types=$!
    trap 'kill "$types" 2>/dev/null || :' EXIT
    step "ruff"
    "$BIN/ruff" format --check --quiet .
    "$BIN/ruff" check --quiet .
    step "import-linter"
    # Prints the broken contracts only.
    "$BIN/lint-imports" >.import-linter.log 2>&1 || { cat .import-linter.log && exit 1; }
    step "shellcheck, shfmt, hadolint"
    shell_files | xargs "$BIN/shellcheck"
    shell_files | xargs "$BIN/shfmt" --indent 4 --diff
    git ls-files "*Dockerfile" | xargs "$BIN/hadolint"
    step "zizmor, actionlint"
    "$BIN/zizmor" --offline --quiet .github/workflows
    if command -v actionlint >/dev/null; then actionlint; else echo "actionlint is not installed: skipped" >&2; fi
    step "mypy"
    wait "$types" || { cat .mypy.log && exit 1; }
    trap - EXIT
}

# Prints how many files of tests run at a time. Each waits for deployments of its own: with one file more than there are
# processors, no processor is idle. At most four, because each file keeps its deployments, of a gigabyte, until it ends.
files_at_a_time() {
    processors=$(getconf _NPROCESSORS_ONLN)
    if [ "$processors" -lt 4 ]; then echo $((processors + 1)); else echo 4; fi
}

main() {
    lint
    step "pytest"
    # In alphabetical order, so that the fast tests come first; tests/stack/conftest.py takes one long file before them.
    # shellcheck disable=SC2086 # ARGS are several words.
    exec "$BIN/python" -m pytest --numprocesses "$(files_at_a_time)" --dist loadfile --no-loadscope-reorder \
        --durations=20 --durations-min=1 ${ARGS:-}
}

main

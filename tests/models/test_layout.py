"""The layout of the code: short files, short functions, and the words of the glossary."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION = 350, 60
RETIRED = (
    r"rehears",
    r"whoever",
    r"somebody'?s own",
    r"\bwho is asked",
    r"\bthe way in\b",
    r"\bways in\b",
    r"\bat work\b",
    r"\bleads? nowhere",
    r"\basks nobody",
    r"\bwhat watches\b",
    r"\bgives? up what",
    r"\bmend(s|ed|ing)?\b",
    r"\bhas no use\b",
    r"\bin clear\b",
    r"\bto be had\b",
    r"\bcannot be had\b",
)
"""Expressions that the glossary replaces: regular expressions."""
LEGACY_NAMES = ("mlflow.rehearsal", '"rehearsal"', "rehearsal/", "RETIRED")
"""Names of labels, folders and pages that deployed stacks and links depend on."""


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split()]


PROGRAM = [path for path in tracked("*.py") if path.relative_to(ROOT).parts[0] != "tests"]
PROSE = [
    path
    for path in tracked(
        "*.py", "*.sh", "*.md", "*.yml", "*.yaml", "*.toml", "*Dockerfile", "Makefile", "*.in", "*.json"
    )
    if path.name not in ("test_layout.py", "CHANGELOG.md", "glossary.md")
]


def test_no_file_of_the_program_is_longer_than_350_lines() -> None:
    assert [path.name for path in PROGRAM if len(path.read_text().splitlines()) > LONGEST_FILE] == []


def test_no_function_is_longer_than_60_lines() -> None:
    long = [
        f"{path.name}: {node.name}"
        for path in PROGRAM
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    ]
    assert long == []


@pytest.mark.parametrize("expression", RETIRED)
def test_an_expression_that_the_glossary_replaces_is_used_nowhere(expression: str) -> None:
    pattern = re.compile(expression, re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in PROSE
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line) and not any(name in line for name in LEGACY_NAMES)
    ]
    assert found == []

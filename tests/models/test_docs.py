"""Test the documentation: generated pages are current, links work, and named verbs, pages and secrets exist."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from operations import reference
from operations.__main__ import VERBS
from operations.rotation.secrets import CERTIFICATES, PROVIDED, TABLE
from settings.images import DEFAULTS
from settings.secrets import GENERATED_KEYS, SECRET_KEYS
from tests.shipped import blocks

ROOT = Path(__file__).parents[2]
MAX_LINE_CHARACTERS = 120
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", ["settings.md", "settings.schema.json", "mlflow-variables.md"])
def test_the_settings_reference_is_current(name: str, tmp_path: Path) -> None:
    reference.write(tmp_path)
    assert (ROOT / "docs" / name).read_text() == (tmp_path / name).read_text(), "type: make docs"


def test_every_secret_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    for key in SECRET_KEYS:
        assert re.search(rf"`(mlflow:)?{key}`", text), key


def test_the_schema_knows_every_key_of_the_stack_files() -> None:
    properties = json.loads((ROOT / "docs" / "settings.schema.json").read_text())["properties"]["config"]["properties"]
    for stack in ROOT.glob("Pulumi.*.yaml"):
        for key in re.findall(r"^  (mlflow:\w+):", stack.read_text(), re.MULTILINE):
            assert key in properties


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_and_section_named_by_a_message_exists() -> None:
    rooms = (
        "settings",
        "runtime",
        "preconditions",
        "components",
        "operations",
        "offline",
        "assets",
        "mlflow",
        "policy",
    )
    kinds = (".py", ".sh", ".yml", ".yaml")
    sources = [path for room in rooms for path in (ROOT / room).rglob("*") if path.suffix in kinds]
    assert {path.suffix for path in sources} >= {".py", ".sh", ".yml"}
    for source in sources:
        # A message may be two strings, so that its line is not too long.
        text = re.sub(r'"\n\s+f?"', "", source.read_text())
        for path, anchor in re.findall(r"(docs/[\w./-]+\.md)(?:#([\w-]+))?", text):
            assert (ROOT / path).exists(), f"{source.name}: {path}"
            if anchor:
                assert anchor in anchors(ROOT / path), f"{source.name}: {path}#{anchor}"


def test_every_section_whose_lines_a_test_types_is_in_a_page() -> None:
    """The tests that type them are long, and would fail only in CI."""
    code = "".join(path.read_text() for path in (ROOT / "tests" / "stack").glob("*.py"))
    named = re.findall(r'\bblocks\("([^"]+)"(?:, "(\w+)")?\)', code)
    assert len(named) == code.count("blocks(")
    for title, language in named:
        assert blocks(title, language or "sh")


def test_every_make_verb_in_a_document_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for verb in re.findall(r"^\$? ?make (?:-s )?([a-z-]+)|`make (?:-s )?([a-z-]+)", page.read_text(), re.MULTILINE):
            assert (verb[0] or verb[1]) in targets, f"{page.name}: make {verb}"
    assert set(VERBS) <= targets


def test_every_file_of_tests_is_collected() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        if re.search(r"^def test_", path.read_text(), re.MULTILINE):
            assert path.name.startswith("test_"), path


def test_no_test_reads_the_stack_files_of_the_checkout() -> None:
    # `make up` writes secrets into the stack files and, where no registry is reachable, settings as well.
    for path in (ROOT / "tests").rglob("*.py"):
        if path.name != "shipped.py":
            assert not re.search(r'ROOT / f?"Pulumi\.(?!yaml)', path.read_text()), path.name


def test_ci_pulls_every_image_that_the_acceptance_tests_run() -> None:
    step = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    for name, image in DEFAULTS.items():
        # No test runs Grafana: it has no package, so it cannot be tested where its image is unavailable.
        assert (image["ref"].removeprefix("docker.io/") in step) == (name != "grafana"), name


def test_the_rotation_chapter_lists_every_secret() -> None:
    page = (ROOT / "docs" / "operations" / "rotate.md").read_text()
    rotated = page.partition("## Rotate a secret")[2].partition("\n## ")[0]
    for key in (*PROVIDED, *TABLE):
        assert f"`{key}`" in rotated, key
    # The table says of each secret what restarts, as `make rotate` does.
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.+) \|$", rotated))
    assert rows == {key: entry.restarts for key, entry in TABLE.items()}


def test_the_command_knows_every_generated_secret() -> None:
    assert {*TABLE, "objectStoreKey"} == {*GENERATED_KEYS, CERTIFICATES}


def test_ci_runs_all_tests_and_requires_docker_the_engine_and_root() -> None:
    step = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    command = re.search(r"run: sudo --preserve-env=ARGS (.*) make test$", step, re.MULTILINE)
    assert command
    assert set(command[1].split()) == {"LONG=1", "REQUIRE_STACK=1", "REQUIRE_ENGINE=1", "REQUIRE_ROOT=1"}


def test_each_file_of_tests_is_in_one_part_of_ci() -> None:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["part"]
    assert job["steps"][-1]["env"] == {"ARGS": "${{ matrix.files }}"}
    listed = [ROOT / name for part in job["strategy"]["matrix"]["include"] for name in part["files"].split()]
    files = [path for entry in listed for path in (entry.rglob("test_*.py") if entry.is_dir() else [entry])]
    assert sorted(files) == sorted((ROOT / "tests").rglob("test_*.py"))


def test_prod_is_deployed_after_staging_with_the_same_steps() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "deploy.yml").read_text())["jobs"]
    assert list(jobs) == ["staging", "prod"]
    assert jobs["prod"]["needs"] == "staging"
    assert "needs" not in jobs["staging"]
    assert jobs["prod"]["steps"] == jobs["staging"]["steps"]
    for stack, job in jobs.items():
        assert (job["environment"], job["env"]["STACK"], job["runs-on"]) == (
            stack,
            stack,
            ["self-hosted", f"mlflow-{stack}"],
        )


DIFFERS = (
    r"…(?:-[\w-]+:)?|\bN of M\b|\b[NM]\b|\d+ s\b|\(HTTP 404\)|code 1|backup,"
    r"|mlflow:objectStore\.kind:|in Pulumi\."
)
"""The parts of a documented message that differ between deployments, or come from another string."""


def test_every_message_in_the_troubleshooting_tables_is_one_that_the_code_prints() -> None:
    rooms = ("settings", "runtime", "preconditions", "components", "operations", "offline", "assets", "mlflow")
    code = "\n".join(path.read_text() for room in rooms for path in (ROOT / room).rglob("*.py"))
    # Joins the parts of a message that is split over several lines.
    code = re.sub(r'"\s*\n\s*(?:\+ )?f?"', "", code)
    page = (ROOT / "docs" / "operations" / "troubleshooting.md").read_text()
    messages = [message for row in page.splitlines() for message in re.findall(r"^\| `([^`]+)`", row)]
    assert len(messages) > 25
    for message in messages:
        # What differs between two deployments: names, numbers, Pulumi's own words.
        for fragment in re.split(DIFFERS, message):
            words = fragment.strip(" :;-.")
            if len(words.split()) > 1 and words != "creating failed":
                assert words in code, message


def test_every_file_that_prose_or_a_comment_names_exists() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {Path(name).parts[0] for name in listed if "/" in name}
    path = re.compile(r"(?<![\w/.$<{(-])((?:[\w.-]+/)+[\w.-]+\.(?:py|sh|md|toml|yml|json))\b")
    prose = [
        name
        for name in listed
        if name.endswith((".md", ".py", ".sh", ".toml", ".yml", "Dockerfile")) and name != "CHANGELOG.md"
    ]
    missing = [
        f"{name}: {found}"
        for name in prose
        for found in path.findall((ROOT / name).read_text())
        if found.split("/")[0] in folders and found not in listed
    ]
    assert missing == []


def test_prose_is_wrapped_at_120_characters() -> None:
    generated = {ROOT / "docs" / "settings.md", ROOT / "docs" / "mlflow-variables.md"}
    for page in sorted({*PAGES} - generated):
        prose = re.sub(r"(?ms)^ *```.*?^ *```$", lambda block: "\n" * block[0].count("\n"), page.read_text())
        long = [
            number
            for number, line in enumerate(prose.splitlines(), 1)
            if len(line) > MAX_LINE_CHARACTERS and not line.lstrip().startswith("|")
        ]
        assert long == [], page.relative_to(ROOT)

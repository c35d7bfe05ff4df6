"""Pulumi's output without a terminal: what of it is worth showing."""

import re
from collections.abc import Iterable, Iterator

UNCHANGED_LINES = re.compile(
    r" ~  \S+ \S+ refresh(ing)?( \([\d.]+s\))? *|@ (refreshing|previewing|updating|destroying)\.*"
    r"|    [\w-]+:[\w/:-]+ \S+  "
    r"|The resources in the stack have been deleted, but .*|If you want to remove the stack completely, run .*"
    r"|All unprotected resources were destroyed. There are still \d+ protected resources associated with this stack\. *"
)
"""Pulumi's lines about resources that it does not change, and its advice to delete the stack file."""
STACK_HEADING = re.compile(r"  pulumi:pulumi:Stack \([\w-]+\):")
PROGRAM_FAILED_LINE = re.compile(r" +error: an unhandled error occurred: program exited with non-zero exit code: 1")
COUNT = re.compile(r"^    (?:[-+~]* *)?\d+ (\w+)$")
"""A line of Pulumi's summary: `57 unchanged`, `+ 3 created`."""
SEVERAL_ERRORS = re.compile(r"    error: \d+ errors? occurred:")
"""The heading under which a provider lists its errors, each of which it has printed already."""
UPDATE_FAILED = "    error: update failed"
"""What the engine adds to the error of a resource. It is shown if there is no other error."""


def worth_showing(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines, without unchanged resources, repeated blank lines and repeated errors."""
    last, errors, in_list, held = "", "", False, ""
    for line in lines:
        text = line.rstrip("\n")
        # After the program's own error, this one repeats that it failed.
        repeated = (errors and PROGRAM_FAILED_LINE.fullmatch(text)) or line == last == "\n"
        # As the only heading it says nothing. After another one, it says that the next error is not of that resource.
        first_heading = last == "Diagnostics:\n" and STACK_HEADING.fullmatch(text)
        entry = text.strip().removeprefix("* ")
        in_list = bool(SEVERAL_ERRORS.fullmatch(text)) or (in_list and entry != "" and entry in errors)
        if text == UPDATE_FAILED:
            held, last = line, "\n"
            continue
        if repeated or first_heading or (errors and in_list) or UNCHANGED_LINES.fullmatch(text):
            continue
        if text.startswith("    error:"):
            errors += f"{text}\n"
        last = line
        yield line
    if held and not errors:
        yield held

"""How a wrong command line or config of ``train.py`` is told: in one line, where jsonargparse writes the usage of every
option and each type that a value is not.
"""

import difflib
import inspect
import re
import sys
from importlib import import_module
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

# The texts of jsonargparse: they are nested, the outermost option first. What is not found in them is told as it is.
KEY = re.compile(r'Parser key "([^"]+)"')
UNKNOWN = re.compile(
    r"Option '([^']+)' is not accepted|Key '([^']+)' is not expected|[Uu]nrecognized arguments: --([\w.]+)"
)
EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: .*)?$", re.MULTILINE)
GIVEN = re.compile(r"(?:Given|Got) value: (.*)$", re.MULTILINE)
CLASS = re.compile(r"Problem with given class_path '([^']+)'")
NO_CLASS = "dot import path string"


class Parser(LightningArgumentParser):
    """LightningCLI's, which says what is wrong in one line and where the options are listed."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with 2, or where the caller asked for it raise ``ArgumentError``."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [option.lstrip("-") for option in parser._option_string_actions]
        sys.stderr.write(f"error: {in_one_line(message, parser.prog, known)}\n")
        raise SystemExit(2)


def in_one_line(message: str, program: str, known: list[str]) -> str:
    """The line.

    Args:
        message: what jsonargparse says.
        program: the command, such as ``train.py fit``.
        known: its options, without the dashes.
    """
    keys = KEY.findall(message)
    classes = CLASS.findall(message)
    program = program.replace(" [options]", "")
    wanted = f"--{keys[0]}.help {classes[0]}" if classes and keys[0] in ("model", "data") else "--help"
    listed = f"{program} {wanted} lists the options"
    if unknown := UNKNOWN.search(message):
        name = next(filter(None, unknown.groups()))
        before = CLASS.findall(message[: unknown.start()])
        taken = before[-1] if before else ""
        near = nearest(name.partition(".")[0], parameters(taken)) if taken else nearest(name, known)
        what = taken.rpartition(".")[2] or program
        return f"received --{'.'.join([*keys, name])}; expected an option of {what}; {near}{listed}"
    innermost = message[[found.end() for found in KEY.finditer(message)][-1] :] if keys else ""
    given = GIVEN.search(innermost)
    # What is expected outside of the innermost option stands behind its value.
    expected = EXPECTED.findall(innermost[: given.end()]) if given else []
    if not given or not expected:
        return f"{' '.join(message.split())}; {listed}"
    named = any(NO_CLASS in kind for kind in expected)
    words = "the import path of a class" if named else " or ".join(map(in_words, expected))
    return f"received --{'.'.join(keys)} {given[1]}; expected {words}; {listed}"


def in_words(kind: str) -> str:
    """A type as jsonargparse writes it, as a config would have it."""
    if found := re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>", kind):
        return {"NoneType": "null", "bool": "true or false", "str": "a text"}.get(found[1], found[1])
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return found[1].replace("'", "").replace(", ", " or ")
    return kind


def parameters(path: str) -> list[str]:
    """The names that the constructor of a class takes; none if it has no signature."""
    module, _, name = path.rpartition(".")
    try:
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        return []


def nearest(name: str, known: list[str]) -> str:
    """What may have been meant, if there is anything alike."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"did you mean {found[0]}? " if found else ""

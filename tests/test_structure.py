"""Promises about the code itself: no code execution from data, no Lightning in the package, a README that is true."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hypercompress", "lightning_modules")
EXECUTING_MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
)
EXECUTING_CALLS = frozenset({"eval", "exec", "compile", "__import__"})
LARGEST_FILE = LARGEST_PRETRAINED = 20_000_000  # bytes
LONGEST_FILE = 300  # lines


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def forbidden(source: str) -> Iterator[str]:
    """Constructs of ``source`` that could run code found in data, as ``line: what``."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names if alias.name.split(".")[0] in EXECUTING_MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in EXECUTING_MODULES:
                    found = [module]
                else:
                    loads = module in {"torch", "torch.serialization"}  # imported bare, its calls could not be told
                    found = [
                        f"from {module} import {alias.name}"
                        for alias in names
                        if alias.name in EXECUTING_MODULES or (loads and alias.name == "load")
                    ]
            case ast.Constant(value=str(text)) if text in EXECUTING_MODULES:
                found = [f"the string {text!r}"]
            case ast.Call():
                found = list(forbidden_call(node))
            case _:
                found = []
        for what in found:
            yield f"{getattr(node, 'lineno', 0)}: {what}"


def forbidden_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    if name.removeprefix("builtins.") in EXECUTING_CALLS:
        yield f"{name}()"
    if name in {"torch.load", "torch.serialization.load"} and "weights_only" not in given:
        yield f"{name}() without weights_only=True"
    if "weights_only" in given and ast.unparse(given["weights_only"]) != "True":
        yield f"weights_only={ast.unparse(given['weights_only'])}"
    for flag in ("allow_pickle", "trust_remote_code"):
        if flag in given and ast.unparse(given[flag]) != "False":
            yield f"{flag}={ast.unparse(given[flag])}"


def test_nothing_executes_code_found_in_data() -> None:
    files = [*sources(*PACKAGES), ROOT / "train.py"]
    assert files
    found = [f"{label(path)}:{what}" for path in files for what in forbidden(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import torch, joblib as j",
        "import dill.source",
        "from marshal import loads",
        "from torch.utils import pickle",
        "importlib.import_module('pickle')",
        "eval('1')",
        "exec(text)",
        "builtins.exec(text)",
        "compile(text, '', 'exec')",
        "__import__('os')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "torch.serialization.load(path)",
        "from torch import load",
        "Module.load_from_checkpoint(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_check_for_code_execution_sees(source: str) -> None:
    assert list(forbidden(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "re.compile('x')",
        "torch.compile(model)",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "'the pickle module is refused'",
        "json.load(file)",
    ],
)
def test_the_check_for_code_execution_passes(source: str) -> None:
    assert not list(forbidden(source))


def test_the_package_loads_no_lightning() -> None:
    code = (
        "import sys, hypercompress, hypercompress.cli\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(tops & {'lightning', 'lightning_fabric', 'pytorch_lightning', 'lightning_modules'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def tree(readme: str) -> list[str]:
    """Paths in the README's tree: the first word of each line of the ```text block that has ``hypercompress/``."""
    blocks = re.findall(r"^```text\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
    block = next((b for b in blocks if re.search(r"^hypercompress/(\s|$)", b, flags=re.MULTILINE)), None)
    assert block is not None, "README.md: no block that opens with ```text and has the line `hypercompress/`"
    paths: list[str] = []
    above: list[tuple[int, str]] = []  # (indent, folder with its slash)
    for line in block.splitlines():
        entry = re.match(r"([\s│├└─|`]*)(\S+)", line)
        if entry is None:
            continue
        indent, name = len(entry[1]), entry[2]
        while above and above[-1][0] >= indent:
            above.pop()
        path = (above[-1][1] if above else "") + name
        paths.append(path)
        if name.endswith("/"):
            above.append((indent, path))
    return paths


def test_tree_reads_nested_blocks() -> None:
    block = "```text\ntrain.py    LightningCLI\nhypercompress/    the package\n├── cli.py    console.py is no file\n"
    block += "└── data/\n    └── folder.py\nlightning_modules/\n    data.py\n```\n"
    assert tree(block) == [
        "train.py",
        "hypercompress/",
        "hypercompress/cli.py",
        "hypercompress/data/",
        "hypercompress/data/folder.py",
        "lightning_modules/",
        "lightning_modules/data.py",
    ]


def test_the_tree_in_the_readme_is_true() -> None:
    """Each module is listed (``__init__.py`` aside: it only re-exports), once, and each listed path exists."""
    listed = tree((ROOT / "README.md").read_text())
    modules = {label(path) for path in sources(*PACKAGES) if path.name != "__init__.py"}
    assert sorted(modules - set(listed)) == [], "modules that the tree in README.md lacks"
    assert [path for path in listed if not (ROOT / path).exists()] == [], "paths in README.md that do not exist"
    assert len(listed) == len(set(listed))


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    """Python files are found; all others are those that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package = ROOT / "hypercompress"
    patterns = project["tool"]["setuptools"]["package-data"]["hypercompress"]
    named = {path for pattern in patterns for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert sorted(others - named) == []
    assert package / "page" / "report.html.jinja" in named


def test_each_public_name_is_documented() -> None:
    import hypercompress

    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text() for page in pages)
    assert hypercompress.__all__
    missing = [name for name in hypercompress.__all__ if not re.search(rf"\b{re.escape(name)}\b", text)]
    assert missing == [], "public names that neither README.md nor docs/ mentions"


def test_modules_are_short() -> None:
    lengths = {label(path): len(path.read_text().splitlines()) for path in sources(*PACKAGES)}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_init_files_only_re_export() -> None:
    """A docstring, imports, ``__all__`` and ``__version__``: nothing else."""
    files = [path for path in sources(*PACKAGES) if path.name == "__init__.py"]
    assert files
    found = []
    for path in files:
        for position, node in enumerate(ast.parse(path.read_text()).body):
            match node:
                case ast.Import() | ast.ImportFrom():
                    continue
                case ast.Expr(value=ast.Constant(value=str())) if position == 0:
                    continue
                case ast.Assign(targets=[ast.Name(id="__all__" | "__version__")]):
                    continue
            found.append(f"{label(path)}:{node.lineno}: {ast.unparse(node)[:60]}")
    assert found == []


def test_files_are_small() -> None:
    """What is committed, or would be: every file, and the released generators together."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout: what is committed cannot be told")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split("\0")
    sizes = {name: (ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file()}
    assert sizes
    assert {name: size for name, size in sizes.items() if size >= LARGEST_FILE} == {}
    released = sum(size for name, size in sizes.items() if name.startswith("hypercompress/pretrained/"))
    assert released <= LARGEST_PRETRAINED

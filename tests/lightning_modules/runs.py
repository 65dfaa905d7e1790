"""Words of train.py that tests share."""

from pathlib import Path

Folders = tuple[Path, Path]


def config(root: Path, name: str) -> str:
    return str(root / "configs" / "debug" / f"{name}.yaml")


def start(folders: Folders) -> list[str]:
    return ["--model.student", str(folders[1]), "--model.teacher.model", str(folders[0])]

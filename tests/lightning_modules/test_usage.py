"""A wrong command line or config of train.py is told in one line."""

from pathlib import Path

import pytest

import train
from lightning_modules.usage import in_one_line
from tests.lightning_modules.runs import config

SYSTEM = "lightning_modules.distillation.Distillation"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--modle x", "received --modle; expected an option of train.py fit; did you mean model? train.py fit --help"),
        ("--model.mixin x", "received --model.mixin; expected an option of Distillation; did you mean mixing? "),
        ("--model.optimisation.lr 1", "received --model.optimisation.lr; expected an option of Distillation; did you "),
        ("--model.teacher.nme x", "received --model.teacher.nme; expected an option of TeacherSource; "),
        ("--model.mixing perhaps", "received --model.mixing perhaps; expected true or false or auto; train.py fit --m"),
        ("--model.optimization.lr x", "received --model.optimization.lr x; expected float or auto; "),
        ("--data.inputs.mean x", "received --data.inputs.mean x; expected tuple or null; train.py fit --data.help "),
        ("--trainer.max_steps x", "received --trainer.max_steps x; expected int; train.py fit --help lists the "),
        ("--trainer.callbacks+=Nope", "received --trainer.callbacks Nope; expected the import path of a class; "),
        ("--model=Distilation", "received --model Distilation; expected the import path of a class; "),
        ("--config nowhere.yaml", "File does not exist: "),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    words: str, line: str, root: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        train.main(["fit", "--config", config(root, "distill"), *words.split()])
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert line in said
    assert said.count("\n") == 1
    assert said.endswith(" lists the options\n")


def test_a_key_of_a_config_too(root: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "own.yaml").write_text("model:\n  init_args:\n    mixin: true\n")
    with pytest.raises(SystemExit):
        train.main(["fit", "--config", config(root, "distill"), "--config", str(here / "own.yaml")])
    assert "error: received --model.mixin; expected an option of Distillation; did you mean" in capsys.readouterr().err


def test_the_command_that_lists_the_options_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        train.main(["fit", "--model.help", SYSTEM])
    assert raised.value.code == 0
    assert "--model.mixing" in capsys.readouterr().out


def test_an_option_of_a_class_as_older_versions_tell_it() -> None:
    message = (
        'Parser key "model":\n  Does not validate against any of the Union subtypes\n  Errors:\n'
        f"    - Problem with given class_path '{SYSTEM}':\n        Validation failed: Key 'mixin' is not expected\n"
        "    - Expected a <class 'NoneType'>\n  Given value: NestedArg(key='mixin', val='3')"
    )
    assert in_one_line(message, "train.py fit", []).startswith(
        "received --model.mixin; expected an option of Distillation; did you mean mixing? "
    )


def test_a_text_of_another_form_is_told_as_it_is() -> None:
    assert in_one_line("of another\n  version", "train.py fit", []) == (
        "of another version; train.py fit --help lists the options"
    )

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from unmask.config import from_config, resolve_class, to_config
from unmask.errors import UserError
from unmask.nn.transformer import TransformerConfig
from unmask.process import Process
from unmask.processes.masked import Masked
from unmask.schedule import Schedule
from unmask.schedules.geometric import Geometric
from unmask.schedules.linear import Linear
from unmask.schedules.polynomial import Polynomial


@dataclass(frozen=True, kw_only=True)
class Part:
    """A user's own part."""

    rate: float
    schedule: Schedule = field(default_factory=Linear)
    sizes: tuple[int, ...] = ()
    parts: tuple[Any, ...] = ()
    names: dict[str, Any] = field(default_factory=dict)


OWN = {f"{__name__}.Part": Part}
MASKED = {"class": "unmask.processes.masked.Masked", "vocab_size": 3, "mask_id": 2}


def through_json(obj: object) -> Any:
    return json.loads(json.dumps(to_config(obj)))


@pytest.mark.parametrize(
    "obj",
    [
        Masked(vocab_size=5, mask_id=4, schedule=Polynomial(power=2.5)),
        Geometric(sigma_min=1e-7, sigma_max=1 / 3),
        TransformerConfig.tiny(vocab_size=5, max_length=8, causal=True),
    ],
)
def test_round_trip(obj: object) -> None:
    assert from_config(through_json(obj), type(obj)) == obj


def test_round_trip_of_nested_parts() -> None:
    part = Part(rate=0.1, sizes=(1, 2), parts=(Part(rate=1.0), Linear()), names={"a": (1, None, "x")})
    assert from_config(through_json(part), Part, OWN) == part


def test_class_is_written_by_its_path() -> None:
    data = to_config(Masked(vocab_size=3, mask_id=2))
    assert data == MASKED | {"schedule": {"class": "unmask.schedules.linear.Linear"}}


def test_defaults_may_be_left_out() -> None:
    assert from_config(MASKED, Process) == Masked(vocab_size=3, mask_id=2)


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "unmasked.evil.Thing",
        "unmask_evil.Thing",
        "unmask",
        "unmask.",
        "unmask..os.path",
        "unmask/../evil.Thing",
        ".unmask.config.T",
        "unmask.config.Thing\n",
        "unmask.cli.__main__.x",
        "unmask.__class__.x",
        "__main__.Masked",
        f"{__name__}.Part",
        "",
        None,
        7,
        ["unmask.processes.masked.Masked"],
    ],
)
def test_nothing_outside_the_package_is_imported(path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"imported {name}")

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(UserError, match=r"only classes inside `unmask`.*extra="):
        resolve_class(path, object)


def test_a_module_that_exists_is_left_unimported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text("class Part: pass")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError):
        from_config({"class": "evil_module.Part"}, object)
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("path", ["unmask.config.Path", "unmask.config.re", "unmask.processes.masked.Schedule"])
def test_names_that_a_module_only_imports_are_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"not defined in|no unmask|has no"):
        resolve_class(path, object)


def test_unknown_class_suggests_an_upgrade() -> None:
    for path in ("unmask.processes.future.Future", "unmask.processes.masked.Future"):
        with pytest.raises(UserError, match=rf"no {path}.*pip install --upgrade unmask"):
            from_config({"class": path}, Process)


def test_class_of_another_kind() -> None:
    with pytest.raises(UserError, match=r"masked.Masked is not a Schedule"):
        from_config(MASKED, Schedule)
    with pytest.raises(UserError, match=r"masked.Masked is not a Schedule"):
        from_config(MASKED | {"schedule": MASKED}, Process)


def test_class_that_is_no_dataclass() -> None:
    with pytest.raises(UserError, match="not a dataclass"):
        from_config({"class": "unmask.denoisers.masked.MaskedDenoiser"}, object)


def test_unknown_field_lists_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"Masked has no field 'mask', 'size' \(it has vocab_size, mask_id, schedule\)"):
        from_config(MASKED | {"size": 1, "mask": 2}, Process)


def test_missing_field_is_named() -> None:
    with pytest.raises(UserError, match=r"Masked misses 'mask_id'; add it"):
        from_config({"class": MASKED["class"], "vocab_size": 3}, Process)


@pytest.mark.parametrize("value", ["3", 3.0, True, None, [3]])
def test_value_of_another_type(value: object) -> None:
    with pytest.raises(UserError, match=r"Masked.vocab_size is .*wanted int"):
        from_config(MASKED | {"vocab_size": value}, Process)


def test_whole_number_is_a_float_where_a_float_is_wanted() -> None:
    loaded = from_config({"class": f"{__name__}.Part", "rate": 1}, Part, OWN)
    assert type(loaded.rate) is float


def test_value_that_the_class_refuses() -> None:
    with pytest.raises(UserError, match=r"Masked refused its fields: .*mask_id=3 is not one of the 3 states"):
        from_config(MASKED | {"mask_id": 3}, Process)


@pytest.mark.parametrize("data", [None, [], "x", {}, {"vocab_size": 3}])
def test_not_a_config_at_all(data: object) -> None:
    with pytest.raises(UserError, match=r'wanted an object with a key "class"'):
        from_config(data, Process)


@pytest.mark.parametrize("value", [object(), {1: 2}, {"class": "x"}, {1, 2}])
def test_what_json_cannot_say_is_refused_when_writing(value: object) -> None:
    with pytest.raises(TypeError, match="field 'parts' holds"):
        to_config(Part(rate=1.0, parts=(value,)))

"""Frozen dataclasses to JSON and back, importing nothing but parts of this package."""

from __future__ import annotations

import dataclasses
import importlib
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from unmask.errors import UserError

T = TypeVar("T")
_PATH = re.compile(r"unmask(\.[A-Za-z][A-Za-z0-9_]*)+", re.ASCII)  # no __main__
_SCALARS = (bool, int, float, str)


class NetworkConfig(ABC):
    """The shape of a network: a frozen dataclass that a checkpoint stores, and that builds the network again."""

    @abstractmethod
    def build(self) -> nn.Module:
        """A network of this shape, whose `config` attribute is this object."""


def class_path(cls: type) -> str:
    """The name that `resolve_class` understands, such as "unmask.processes.masked.Masked"."""
    return f"{cls.__module__}.{cls.__qualname__}"


def resolve_class(path: object, base: type[T], extra: Mapping[str, type] | None = None) -> type[T]:
    """The class of that name, a subclass of `base`, from inside `unmask` or from `extra`; nothing else is imported.

    Raises:
        UserError: the name is of another package, unknown, or not a `base`.
    """
    if isinstance(path, str) and extra and path in extra:
        found: Any = extra[path]
    elif isinstance(path, str) and _PATH.fullmatch(path):
        found = _import(path)
    else:
        raise UserError(
            f"config: met class {path!r}; only classes inside `unmask` are loaded by name. If it is a part of your own "
            f"that you trust, pass extra={{{path!r}: TheClass}}"
        )
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"config: class {path} is not a {base.__name__}, which is wanted here")
    return found


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"config: this unmask has no {path} ({error}); the file may come from a newer version: "
            "pip install --upgrade unmask"
        ) from error
    if getattr(found, "__module__", None) != module:  # a name that the module itself imported from elsewhere
        raise UserError(f"config: {path} is not defined in {module}; give the path of the module that defines it")
    return found


def to_config(obj: Any) -> dict[str, Any]:
    """A dataclass as JSON values, {"class": path, field: value, ...}; dataclasses inside it likewise.

    Raises:
        TypeError: a field holds something that JSON cannot say.
    """
    if not dataclasses.is_dataclass(obj) or isinstance(obj, type):
        raise TypeError(f"to_config: met {obj!r}, wanted a dataclass instance")
    fields = [f.name for f in dataclasses.fields(obj) if f.init]
    return {"class": class_path(type(obj))} | {name: _dump(getattr(obj, name), name) for name in fields}


def _dump(value: Any, name: str) -> Any:
    if value is None or isinstance(value, _SCALARS):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_config(value)
    if isinstance(value, (tuple, list)):
        return [_dump(item, name) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value) and "class" not in value:
        return {key: _dump(item, name) for key, item in value.items()}
    raise TypeError(
        f"to_config: field {name!r} holds {type(value).__name__}; wanted None, numbers, strings, dataclasses, or "
        "tuples and dicts (no key 'class') of them"
    )


def from_config(data: object, base: type[T], extra: Mapping[str, type] | None = None) -> T:
    """The object that `to_config` wrote, checked to be a `base`; lists come back as tuples.

    Args:
        data: {"class": path, field: value, ...}.
        base: the class or abstraction wanted.
        extra: further classes that may be named, {path: class}.

    Raises:
        UserError: foreign or unknown class, unknown or missing fields, values that the class refuses.
    """
    if not isinstance(data, Mapping) or "class" not in data:
        raise UserError(f'config: met {_short(data)}, wanted an object with a key "class" naming a {base.__name__}')
    cls = resolve_class(data["class"], base, extra)
    if not dataclasses.is_dataclass(cls):
        raise UserError(f"config: {data['class']} is not a dataclass, so it cannot be built from a config")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    values = {key: value for key, value in data.items() if key != "class"}
    _check_names(cls, fields, values)
    hints = _hints(cls)
    loaded = {key: _load(value, hints.get(key), f"{cls.__name__}.{key}", extra) for key, value in values.items()}
    try:
        built: Any = cls(**loaded)
    except (TypeError, ValueError) as error:
        raise UserError(f"config: {cls.__name__} refused its fields: {error}") from error
    return typing.cast(T, built)


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:  # names that only a type checker imports
        return {}


def _check_names(cls: type, fields: Mapping[str, dataclasses.Field[Any]], values: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(
            f"config: {cls.__name__} has no field {', '.join(map(repr, unknown))} (it has {', '.join(fields)}); "
            "correct the name, or upgrade unmask if the file comes from a newer version"
        )
    optional = {
        name
        for name, field in fields.items()
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    missing = [name for name in fields if name not in values and name not in optional]
    if missing:
        raise UserError(f"config: {cls.__name__} misses {', '.join(map(repr, missing))}; add it to the config")


def _load(value: Any, hint: Any, where: str, extra: Mapping[str, type] | None) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    if hint in _SCALARS and type(value) is not hint:
        raise UserError(f"config: {where} is {_short(value)}, wanted {hint.__name__}")
    if isinstance(value, list):
        return tuple(_load(item, None, where, extra) for item in value)
    if isinstance(value, Mapping) and "class" in value:
        return from_config(value, hint if isinstance(hint, type) else object, extra)
    if isinstance(value, Mapping):
        return {key: _load(item, None, where, extra) for key, item in value.items()}
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

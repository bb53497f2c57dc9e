"""What ``from meshlib import ...`` gives is complete, documented and typed."""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import meshlib

SOURCE = Path(meshlib.__file__)


def names_for_type_checkers() -> set[str]:
    """What the block under TYPE_CHECKING imports."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_names_are_sorted_and_unique() -> None:
    assert meshlib.__all__ == sorted(set(meshlib.__all__))


def test_type_checkers_and_programs_see_the_same_names() -> None:
    assert names_for_type_checkers() == set(meshlib.__all__) == set(dir(meshlib))


@pytest.mark.parametrize("name", meshlib.__all__)
def test_name_leads_to_what_it_is_called(name: str) -> None:
    value = getattr(meshlib, name)
    assert getattr(value, "__name__", name) == name


def test_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        meshlib.no_such_thing  # noqa: B018


def test_star_import_gives_all_names() -> None:
    code = "from meshlib import *\nimport meshlib\nassert set(meshlib.__all__) <= set(globals())"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def callables() -> Iterator[tuple[str, object]]:
    """Public classes and functions, and the public methods and properties of the classes that they define."""
    for name in meshlib.__all__:
        value = getattr(meshlib, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        yield name, value
        if inspect.isclass(value) and value.__module__.startswith("meshlib"):
            for member, defined in vars(value).items():
                plain = defined.__func__ if isinstance(defined, classmethod | staticmethod) else defined
                if not member.startswith("_") and (inspect.isfunction(plain) or isinstance(plain, property)):
                    yield f"{name}.{member}", plain


@pytest.mark.parametrize(
    ("name", "value"), list(callables()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_everything_public_is_documented(name: str, value: object) -> None:
    text = inspect.getdoc(value) or ""
    generated = inspect.isclass(value) and dataclasses.is_dataclass(value) and text.startswith(f"{name}(")
    assert text.strip(), name
    assert not generated, f"{name} has the docstring dataclass made"


@pytest.mark.parametrize(
    ("name", "value"), list(callables()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_everything_public_is_typed(name: str, value: object) -> None:
    function = value.fget if isinstance(value, property) else value
    if not inspect.isfunction(function):
        return
    missing = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
    ]
    assert not missing
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty
    typing.get_type_hints(function)


def configs() -> list[type]:
    found = [getattr(meshlib, name) for name in meshlib.__all__]
    return [one for one in found if inspect.isclass(one) and dataclasses.is_dataclass(one)]


@pytest.mark.parametrize("kind", configs(), ids=lambda kind: kind.__name__)
def test_public_values_are_frozen(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_errors_form_one_tree() -> None:
    errors = [getattr(meshlib, name) for name in meshlib.__all__]
    kinds = [one for one in errors if inspect.isclass(one) and issubclass(one, BaseException)]
    assert kinds
    assert all(issubclass(one, meshlib.MeshError) for one in kinds)


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    from meshlib import errors

    drawn = errors.__doc__ or ""
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.MeshError)
    }
    assert {name for name in defined if name not in drawn} == set()


def test_delivery_states_are_documented_one_by_one() -> None:
    source = inspect.getsource(meshlib.DeliveryState)
    assert issubclass(meshlib.DeliveryState, enum.StrEnum)
    assert source.count('"""') == 2 * (len(meshlib.DeliveryState) + 1)


def test_package_is_marked_as_typed() -> None:
    assert (SOURCE.parent / "py.typed").exists()

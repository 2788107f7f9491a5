"""What public functions are given is checked where it comes in, with and without the run-time checks of the test run."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import cosmic_tl
from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError

PACKAGE = Path(cosmic_tl.__file__).parent


def _public() -> list[tuple[str, str]]:
    """Module and name of everything that a stub declares."""
    found = set()
    for stub in PACKAGE.rglob("*.pyi"):
        room = ".".join(stub.parent.relative_to(PACKAGE.parent).parts)
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.level:
                found |= {(f"{room}.{node.module}", name.name) for name in node.names}
    return sorted(found)


def test_every_public_function_and_class_stands_at_the_border() -> None:
    bare = []
    for module, name in _public():
        path = PACKAGE.parent / f"{module.replace('.', '/')}.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                bases = [ast.unparse(base) for base in getattr(node, "bases", [])]
                first = [ast.unparse(decorator) for decorator in node.decorator_list[:1]]
                # Errors, the judges' protocol, and lm-eval's own interface, whose constructor is checked.
                if first != ["checked"] and not {"Protocol", "ValueError", "CosmicError", "HFLM"} & set(bases):
                    bare.append(f"{module}.{name}")
    assert len(_public()) > 100
    assert bare == []


@checked
def example(
    *,
    text: str = "",
    number: float = 1.0,
    whole: int = 1,
    texts: Sequence[str] = (),
    numbers: list[float] | None = None,
    pair: tuple[int, int] = (1, 1),
    table: Mapping[str, Sequence[int]] | None = None,
    name: Literal["a", "b"] = "a",
    vector: Float[Tensor, " d"] | None = None,
    function: Any = None,
) -> dict[str, Any]:
    return dict(locals())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": 3}, "text: expected a text, found 3; see help(example)"),
        ({"number": "3"}, "number: expected a number, found the text '3'; see help(example)"),
        ({"number": True}, "number: expected a number, found True; see help(example)"),
        ({"whole": 1.5}, "whole: expected a whole number, found 1.5; see help(example)"),
        ({"whole": True}, "whole: expected a whole number, found True; see help(example)"),
        ({"whole": None}, "whole: expected a whole number, found None; see help(example)"),
        ({"texts": "hi"}, "texts: must be a list of texts, found the text 'hi'; pass ['hi']"),
        ({"texts": ["hi"] * 99 + [3]}, "texts: must be a list of texts, found int at 99; pass texts"),
        (
            {"numbers": [1, 2.5, "x"]},
            "numbers: expected a list of numbers or None, found the text 'x' at 2; see help(example)",
        ),
        ({"pair": {"": None}}, "pair: expected a list of 2 whole numbers, found a dict; see help(example)"),
        ({"pair": (1, 2, 3)}, "pair: expected a list of 2 whole numbers, found a list of 3; see help(example)"),
        (
            {"table": {"a": [1, None]}},
            "table a: expected a list of whole numbers, found None at 1; see help(example)",
        ),
        ({"name": "c"}, "name: unknown 'c'; use a or b"),
        (
            {"vector": torch.ones(2, 2)},
            "vector: expected a tensor [d] or None, found a Tensor of shape (2, 2) and torch.float32; see help(example)",
        ),
        ({"text": str}, "text: expected a text, found the class str; see help(example)"),
    ],
)
def test_what_does_not_fit_is_named_with_what_was_expected(given: dict[str, Any], message: str) -> None:
    with pytest.raises(CosmicError) as error:
        example(**given)
    assert str(error.value) == message


def test_whole_numbers_are_numbers_and_numpy_numbers_become_pythons() -> None:
    found = example(number=2, whole=np.int64(7), numbers=[1, 2.0], vector=torch.ones(3))
    assert (found["number"], found["whole"], type(found["whole"])) == (2, 7, int)
    with pytest.raises(CosmicError, match="whole: expected a whole number, found"):
        example(whole=np.float32(1.5))


def test_a_missing_argument_is_still_pythons_own_error() -> None:
    @checked
    def needs(one: int) -> int:
        return one

    with pytest.raises(TypeError, match="one"):
        needs()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="two"):
        needs(one=1, two=2)  # type: ignore[call-arg]


def test_methods_constructors_and_class_methods_are_checked() -> None:
    @checked
    class Thing:
        def __init__(self, size: int) -> None:
            self.size = size

        def grown(self, by: int) -> int:
            return self.size + by

        @classmethod
        def of(cls, text: str) -> "Thing":
            return cls(len(text))

        @staticmethod
        def nothing(text: None = None) -> NoneType:
            return text

    assert Thing.of("abc").grown(2) == 5
    for call in (lambda: Thing("3"), lambda: Thing(3).grown("2"), lambda: Thing.of(3), lambda: Thing.nothing(1)):  # type: ignore[arg-type]
        with pytest.raises(CosmicError, match="expected"):
            call()

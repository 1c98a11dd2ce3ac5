"""Write the API reference from docstrings: python tools/api_reference.py > docs/api.md"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import cmi_fast
from cmi_fast import Interactions, Recommender, functional, nn
from cmi_fast.data.split import Split

SETUP = ("extra_repr", "reset_parameters")  # of torch.nn.Module


def entry(name: str, thing: Any, level: int) -> Iterator[str]:
    """A heading, the signature and the docstring; of a class also those of its public methods and properties."""
    yield f"{'#' * level} `{name}`\n"
    if callable(thing):
        yield f"```python\n{name.rpartition('.')[2]}{signature(thing)}\n```\n"
    yield f"```text\n{inspect.getdoc(thing) or ''}\n```\n"
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            if (
                method not in SETUP
                and not method.startswith("_")
                and (callable(value) or isinstance(value, (property, classmethod)))
            ):
                attribute = value if isinstance(value, property) else getattr(thing, method)
                yield from entry(f"{name}.{method}", attribute, level + 1)


def signature(thing: Any) -> str:
    """As in the source: annotations without quotes, on several lines where one is too long."""
    found = inspect.signature(thing)
    parameters = [p.replace(annotation=plain(p.annotation)) for name, p in found.parameters.items() if name != "self"]
    whole = str(found.replace(parameters=parameters, return_annotation=plain(found.return_annotation)))
    if len(whole) <= 100:
        return whole
    lines = [f"    {parameter}," for parameter in parameters]
    keyword = next((place for place, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), len(lines))
    lines[keyword:keyword] = ["    *,"] if keyword < len(lines) else []
    return "(\n" + "\n".join(lines) + f"\n) -> {plain(found.return_annotation)!r}"


class Plain(str):
    """An annotation that shows without quotes."""

    def __repr__(self) -> str:
        return str(self)


def plain(annotation: Any) -> Any:
    return Plain(annotation) if isinstance(annotation, str) else annotation


def reference() -> Iterator[str]:
    yield "# API reference\n\nGenerated from the docstrings by `python tools/api_reference.py > docs/api.md`.\n"
    yield "## Logs and recommenders\n"
    for name, thing in {
        "cmi_fast.Interactions": Interactions,
        "Split": Split,
        "cmi_fast.Recommender": Recommender,
    }.items():
        yield from entry(name, thing, 3)
    for module in (functional, nn):
        yield f"## `{module.__name__}`\n"
        for name in module.__all__:
            yield from entry(f"{module.__name__}.{name}", getattr(module, name), 3)
    yield "## Build\n"
    yield from entry("cmi_fast.build_info", cmi_fast.build_info, 3)


if __name__ == "__main__":
    print("\n".join(reference()).rstrip())

"""Whatever a field of serve may be sent, what is wrong with it is said in words of ours."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import drm_ingest.serve.app  # noqa: F401 — so that every room is there
from drm_ingest.serve import shapes
from drm_ingest.serve.violations import EXPECTED

ODD: list[Any] = [
    None, True, 5, -1, 1.5, 1e300, float("nan"), 10**30, "", "x", "\0", "\ud800", "x" * 20_000, "2026-13-01T00:00:00Z",
    "2026-01-01", "2026-01-01T00:00:00", "0001-01-01T00:00:00+14:00", [], [None], [""], ["x" * 5000], ["a"] * 20_000,
    {}, {"a": 1}, {"A[": "1"}, {"a": ""}, {f"n{number}": "1" for number in range(50)},
]  # fmt: skip


def models(base: type[BaseModel]) -> list[type[BaseModel]]:
    return [found for model in base.__subclasses__() for found in (model, *models(model))]


def test_what_is_sent_to_serve_is_found() -> None:
    assert len(models(shapes.Request)) > 10


@pytest.mark.parametrize("model", models(shapes.Request), ids=lambda model: model.__name__)
def test_each_way_to_be_wrong_has_words_of_ours(model: type[BaseModel]) -> None:
    kinds = set()
    for sent in [*({name: odd} for name in (*model.model_fields, "other") for odd in ODD), *ODD]:
        try:
            model.model_validate(sent)
        except ValidationError as error:
            kinds |= {each["type"] for each in error.errors()}
    assert kinds - EXPECTED.keys() == set()
    assert {"model_type", "extra_forbidden"} <= kinds

"""Lists of the API: `{"items": […], "next": CURSOR or null}`; `after=CURSOR` goes on."""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

from fastapi import Path, Query
from pydantic import BaseModel, Field

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=1000, description="at most so many items")]
Number = Annotated[int, Path(ge=1, le=1 << 53, description="the id of a build or job")]
AfterName = Annotated[str, Query(max_length=128, description="`next` of the page before")]
AfterId = Annotated[int, Query(ge=0, le=1 << 53, description="`next` of the page before")]


class Page(BaseModel, Generic[T]):
    """One page of a list."""

    items: list[T]
    next: str | None = Field(default=None, description="pass as `after` for the next page; null: this was the last")

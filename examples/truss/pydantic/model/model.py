# SPDX-License-Identifier: Apache-2.0
"""Typed input and output: what does not fit is refused before predict sees it."""

from typing import List

from pydantic import BaseModel, Field


class Order(BaseModel):
    item: str
    count: int = Field(ge=1, le=1000)
    notes: List[str] = []


class Bill(BaseModel):
    item: str
    cents: int


class Model:
    def predict(self, order: Order) -> Bill:
        return Bill(item=order.item, cents=order.count * 250)

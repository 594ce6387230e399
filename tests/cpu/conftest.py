"""Threads that take part however little there is to do."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def threads_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    # After the simulator has been chosen.
    from numbasep.cpu import pool

    monkeypatch.setattr(pool, "ALONE", 0)
    monkeypatch.setattr(pool, "HEAVY", 0)

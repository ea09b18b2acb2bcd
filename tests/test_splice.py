"""Heads of answers as a tunnel writes them."""

from __future__ import annotations

import pytest

from fal_notebook.gateway.splice import head_of


@pytest.mark.parametrize(("status", "phrase"), [(403, b"Forbidden"), (499, b""), (999, b"")])
def test_any_status_has_a_head_also_one_without_a_name(status: int, phrase: bytes) -> None:
    head = head_of(status, [(b"a", b"b")])
    assert head == b"HTTP/1.1 %d %b\r\na: b\r\n\r\n" % (status, phrase)

"""What the page on reliability promises to say is what the tests have read."""

from __future__ import annotations

import re
from pathlib import Path

from promises import messages

HERE = Path(__file__).parent
SAID = re.compile(r"(?:assert|is)_said\(\s*\"([a-z-]+)\"")


def test_every_message_of_the_page_is_one_that_a_test_has_read_and_the_other_way_round() -> None:
    read = {
        name
        for test in HERE.glob("test_storage_*.py")
        for name in SAID.findall(test.read_text("utf-8"))
    }
    assert messages()
    assert set(messages()) == read

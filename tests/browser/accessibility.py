"""What axe-core finds in a page that keeps people from using it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from browser import needs

if TYPE_CHECKING:
    from playwright.sync_api import Page

RUN = """(root) => axe.run({ include: [root] }, { resultTypes: ["violations"],
    runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"],
    rules: { region: { enabled: false } } })"""
"""What surrounds our nodes, such as the landmarks of the page, is the application's."""


def violations(page: Page, root: str) -> list[str]:
    """Every violation below the nodes of a selector, with the node."""
    page.evaluate(needs.axe().read_text())
    found = page.evaluate(RUN, root)["violations"]
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]

"""The contrast of what a page shows, as WCAG defines it, measured in the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator

TEXT, GLYPH = 4.5, 3.0
"""Least contrast of a text, and of a sign that a word beside it explains (WCAG 2, AA)."""
MEASURE = """(root) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const colourOf = (css) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = css;
        canvas.fillRect(0, 0, 1, 1);
        const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
        return [red, green, blue, alpha / 255];
    };
    const over = ([r, g, b, alpha], under) =>
        [r, g, b].map((part, place) => alpha * part + (1 - alpha) * under[place]);
    const luminance = (colour) => {
        const [r, g, b] = colour.map((part) => part / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const chain = (element) => element ? [...chain(element.parentElement), element] : [];
    const measured = (element, pseudo) => {
        let [ground, opacity] = [[255, 255, 255], 1];
        for (const each of chain(element)) {
            const style = getComputedStyle(each);
            opacity *= Number(style.opacity);
            ground = over(colourOf(style.backgroundColor), ground);
        }
        const [r, g, b, alpha] = colourOf(getComputedStyle(element, pseudo).color);
        const text = over([r, g, b, alpha * opacity], ground);
        if (!opacity) return Infinity; // not seen
        const [light, dark] = [luminance(text), luminance(ground)].sort((a, b) => b - a);
        return (light + 0.05) / (dark + 0.05);
    };
    const isSeen = (element) => element.getClientRects().length > 0 &&
        getComputedStyle(element).visibility === "visible" &&
        parseFloat(getComputedStyle(element).fontSize) > 0 &&
        !element.closest(":disabled, [aria-disabled=true], .ipytp-unseen, option");
    const found = [];
    for (const element of [root, ...root.querySelectorAll("*")].filter(isSeen)) {
        const isSign = element.closest("[aria-hidden=true]") !== null;
        const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE)
            .map((node) => node.textContent.trim()).join("");
        if (own) found.push([own.slice(0, 60), isSign, measured(element, null)]);
        const sign = getComputedStyle(element, "::before").content;
        if (/^"\\S/.test(sign)) found.push([sign, true, measured(element, "::before")]);
    }
    return found;
}"""


def too_faint(root: Locator) -> list[tuple[str, float]]:
    """Every visible text and sign below `root` that has too little contrast."""
    found = root.evaluate(MEASURE)
    assert found, "there is nothing to measure"
    return [
        (text, round(ratio, 2))
        for text, is_sign, ratio in found
        if ratio < (GLYPH if is_sign else TEXT)
    ]

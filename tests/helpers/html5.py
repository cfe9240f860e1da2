"""HTML as a browser reads it: by nh3, whose parser builds the tree that HTML5 prescribes."""

from __future__ import annotations

import nh3

from ipytaskpersist.text.sanitized_html import KEPT, SPANS

REFUSED = frozenset(
    (
        *("script", "style", "title", "noscript", "iframe", "template", "svg", "math", "mtext"),
        *("foreignobject", "mglyph", "annotation-xml", "a", "img", "picture", "source", "video"),
        *("audio", "object", "embed", "applet", "param", "link", "meta", "base", "form", "input"),
        *("button", "select", "option", "textarea", "label", "details", "dialog", "marquee"),
        *("font", "canvas", "map", "area", "track", "frame", "frameset", "xmp", "plaintext"),
    )
)
"""What acts, loads, leads away or changes how the rest is read."""


def kept_by_a_sanitizer(html: str) -> str:
    """What nh3 keeps of some HTML when it is told to keep what we do."""
    return nh3.clean(
        html,
        tags=KEPT,
        clean_content_tags={"script", "style", "title", "noscript", "iframe", "template", "svg"},
        attributes={"td": {*SPANS}, "th": {*SPANS}},
        link_rel=None,
    )


def has_more_than_is_kept(html: str) -> bool:
    """Whether a browser finds an element or an attribute in it that we never write."""
    everything = nh3.clean(
        html,
        tags=KEPT | REFUSED,
        clean_content_tags=set(),
        attributes={},
        generic_attribute_prefixes={""},
        strip_comments=False,
        link_rel=None,
    )
    return everything != kept_by_a_sanitizer(html)

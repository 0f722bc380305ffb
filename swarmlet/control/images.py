"""Whether a text can name an image, after the grammar of the distribution project's references.

    [host[:port]/]path[/path...][:tag][@digest]

Only the form is checked: no registry is asked.
"""

from __future__ import annotations

import re

NAME_LENGTH_MAX = 255

_HOST_PART = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TAG = r"[\w][\w.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?P<name>(?:{_HOST}/)?{_PATH_PART}(?:/{_PATH_PART})*)(?::{_TAG})?(?:@{_DIGEST})?", re.ASCII
)
# Docker takes 64 hexadecimal digits for an image id, which only one engine knows.
_IMAGE_ID = re.compile(r"[a-f0-9]{64}")


def is_image_reference(text: str) -> bool:
    match = _REFERENCE.fullmatch(text)
    return match is not None and len(match["name"]) <= NAME_LENGTH_MAX and _IMAGE_ID.fullmatch(text) is None

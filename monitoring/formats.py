"""What HTTP answers are made of: the format of metrics that a client prefers, the type of a picture."""

FORMATS = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}
TYPES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"RIFF", "image/webp"),
    (b"GIF8", "image/gif"),
)
"""Pictures that are passed on, by their first bytes; anything else is not served."""


def chosen_format(accept: str) -> str:
    """Which of the two formats a client prefers: a name of FORMATS.

    OpenMetrics only for who asks for it in a version that 1.0.0 is right for; everybody understands text.
    """
    best, chosen = 0.0, "text"
    for entry in accept[:1000].split(","):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        given = dict(part.partition("=")[::2] for part in parameters)
        try:
            quality = float(given.get("q", "1"))
        except ValueError:
            continue
        name = {"application/openmetrics-text": "openmetrics", "text/plain": "text"}.get(kind)
        if name == "openmetrics" and given.get("version", "1.0.0").strip('"') != "1.0.0":
            continue
        if name is not None and quality > best:
            best, chosen = quality, name
    return chosen


def content_type(picture: bytes) -> str | None:
    """MIME type by the first bytes, None for what is no picture we pass on."""
    for start, name in TYPES:
        if picture.startswith(start) and (start != b"RIFF" or picture[8:12] == b"WEBP"):
            return name
    return None

"""When a certificate begins and ends to be valid, from its DER; Python's ssl does not say it of one's own.

Reference: RFC 5280, 4.1: Certificate > TBSCertificate > version?, serial, signature, issuer, validity.
"""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime

PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
FORMS = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""By tag: UTCTime, GeneralizedTime."""
VERSION = 0xA0
"""Tag of the version, which old certificates leave out."""


def first_in(text: bytes) -> bytes | None:
    """DER of the first certificate of a PEM file, the one that is our own; None where there is none."""
    found = PEM.search(text)
    try:
        return None if found is None else ssl.PEM_cert_to_DER_cert(found[0].decode())
    except ValueError:
        return None


def validity(der: bytes) -> tuple[float, float]:
    """First and last second in which a certificate is valid, since 1970.

    Args:
        der: one that OpenSSL has taken already.
    """
    at = _inside(der, _inside(der, 0))  # behind the heads of both sequences
    skipped = 4 if der[at] == VERSION else 3
    for _ in range(skipped):
        at = _end(der, at)
    begins = _inside(der, at)
    return _time(der, begins), _time(der, _end(der, begins))


def _inside(der: bytes, at: int) -> int:
    """Where the content of the value at a place begins."""
    return at + (2 if der[at + 1] < 0x80 else 2 + (der[at + 1] & 0x7F))


def _end(der: bytes, at: int) -> int:
    """The place behind the value at a place."""
    start, length = _inside(der, at), der[at + 1]
    return start + (length if length < 0x80 else int.from_bytes(der[at + 2 : start], "big"))


def _time(der: bytes, at: int) -> float:
    text = der[_inside(der, at) : _end(der, at)].decode()
    return datetime.strptime(text, FORMS[der[at]]).replace(tzinfo=UTC).timestamp()

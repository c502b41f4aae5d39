"""How service and front speak: frames of a length and so many bytes.

A question is JSON, [number, name, argument]. An answer is the question's number, a byte that says what it is,
and bytes; a snapshot begins with its version.
"""

import struct

LENGTH = struct.Struct(">I")
HEAD = struct.Struct(">IB")
"""Number of the question, and what its answer is."""
VERSION = struct.Struct(">Q")
FOUND, NOTHING, FAILED = range(3)

"""What the keys of an installation with the default prefix are called."""

from __future__ import annotations

from shared.keys import Keys

keys = Keys()

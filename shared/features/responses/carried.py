"""Reasoning that a client carries: `encrypted_content` of reasoning items, made here for providers that have no such thing.

Hidden here: the form. What a provider wants back to go on thinking (its reasoning, signatures, what it put beside calls) is
compressed and encrypted with AES-SIV (RFC 5297), which needs no random number: the same reasoning is the same text for every
viewer, in any process. The tenant is authenticated with it, so another tenant's is none. The key is the installation's
(shared/features/installation.py); where it is another one, as after the loss of Redis, the text says nothing any more.

    sr1_BASE64URL(4 bytes that tell the key, then the ciphertext)
    plaintext: {"g": generation, "m": model, "d": fields of the assistant's message}
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from typing import Any, NamedTuple

from shared.chat.chunks import Accumulator
from shared.chat.messages import REASONING_FIELDS
from shared.errors import BadRequest
from shared.lib import json

KEY_BYTES = 64
INCLUDED = "reasoning.encrypted_content"
"""What a request has in `include` to be given it."""

_PREFIX = "sr1_"
_TELLS = 4
_LARGEST = 32 * 1024 * 1024
"""What a text may grow to when it is unpacked."""
_OF_A_CALL = frozenset({"index", "id", "type", "function", "custom"})


class Carried(NamedTuple):
    """Some of what a model thought in one generation."""

    generation_id: str
    model: str
    """As it was asked for."""
    delta: dict[str, Any]
    """Fields of the message."""


class Cipher:
    """Of one tenant."""

    def __init__(self, key: bytes, tenant: str) -> None:
        """`key` has KEY_BYTES."""
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV  # some 30 ms, for those who ask for it

        self._siv, self._bound = AESSIV(key), [tenant.encode()]
        self._tell = hashlib.sha256(key).digest()[:_TELLS]

    def encrypt(self, carried: Carried) -> str:
        text = json.dumps({"g": carried.generation_id, "m": carried.model, "d": carried.delta})
        sealed = self._siv.encrypt(zlib.compress(text), self._bound)
        return _PREFIX + base64.urlsafe_b64encode(self._tell + sealed).decode().rstrip("=")

    def decrypt(self, text: str, param: str) -> Carried | None:
        """None for what was not made here, or with a key that is not known any more. Raises BadRequest naming `param`."""
        from cryptography.exceptions import InvalidTag

        if not text.startswith(_PREFIX):
            return None
        try:
            packed = base64.urlsafe_b64decode(text[len(_PREFIX) :] + "==")
            if packed[:_TELLS] != self._tell:
                return None
            unpacking = zlib.decompressobj()
            plain = unpacking.decompress(self._siv.decrypt(packed[_TELLS:], self._bound), _LARGEST)
            if unpacking.unconsumed_tail:
                raise ValueError
            found = json.loads(plain)
        except (InvalidTag, ValueError, binascii.Error, zlib.error):
            raise BadRequest(
                f"{param}: This is not what the item had when it was given. Send it as it was, or leave the item out.",
                code="invalid_encrypted_content",
                param=param,
            ) from None
        return Carried(found["g"], found["m"], found["d"])


def carried_of(delta: dict[str, Any]) -> dict[str, Any]:
    """What of a delta, or of a message, a provider may want back: reasoning in all its forms, and what stands beside calls."""
    found = {name: delta[name] for name in REASONING_FIELDS if delta.get(name)}
    calls = [
        {name: value for name, value in call.items() if name in ("index", "id") or name not in _OF_A_CALL}
        for call in delta.get("tool_calls") or ()
        if call.keys() - _OF_A_CALL
    ]
    return {**found, "tool_calls": calls} if calls else found


def added_up(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that deltas make."""
    fold = Accumulator()
    for delta in deltas:
        fold.feed({"choices": [{"index": 0, "delta": delta}]})
    return fold.messages[0] if deltas else {}

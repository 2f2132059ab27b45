"""Secrets inside the declared state: sealed before it is packed, so no copy of the control volume holds one in clear.

The key comes from the fleet's secret, which lies on no storage node. AES-SIV (RFC 5297): the same value is sealed to
the same bytes, so states that are equal are stored alike.

A sealed value reads `sealed:1:<base64>`; whatever reads otherwise was written in clear, by a version before format 2,
and is sealed by the next save. (Versions of the state that were saved before then go as new ones are saved.)
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import logging
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from aurora_ray.rpc.admission import OURS, Secret

_log = logging.getLogger(__name__)

SECRET: Final = {"secret": True}  # metadata of a dataclass's field (a str) that is stored sealed
_PREFIX: Final = "sealed:1:"


def secret_fields(cls: type[Any]) -> tuple[str, ...]:
    """The names of a dataclass's fields that are stored sealed."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("secret"))


def seal(name: str, value: str, secret: Secret | None = None) -> str:
    """The value of the field `name`, sealed."""
    sealed = _cipher(secret).encrypt(value.encode(), [name.encode()])
    return _PREFIX + base64.b64encode(sealed).decode()


def unseal(name: str, value: str, secret: Secret | None = None) -> str:
    """The inverse, also of a value in clear.

    One that was sealed with a secret that is lost has a substitute, always the same, which whoever uses the value sets
    anew: an unreadable password must not keep a fleet down that is well otherwise.
    """
    if not value.startswith(_PREFIX):
        return value
    try:
        sealed = base64.b64decode(value.removeprefix(_PREFIX), validate=True)
        return _cipher(secret).decrypt(sealed, [name.encode()]).decode()
    except (InvalidTag, binascii.Error, ValueError):
        _log.warning("%s was sealed with another secret than the fleet's: it is replaced by a new one", name)
        return (secret or OURS.secret).subkey(f"substitute {value}").hex()


def _cipher(secret: Secret | None) -> AESSIV:
    known = secret or OURS.secret
    return AESSIV(known.subkey("sealing, authentication") + known.subkey("sealing, encryption"))

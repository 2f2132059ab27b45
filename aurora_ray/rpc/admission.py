"""Who may call, and who may answer: proofs of the fleet's secret, on every inner call, both ways. The one place of it.

The secret itself never travels. A caller proves with each call that it knows it: an HMAC over the method, a digest of
the request, the server's name, the door (port or socket) that it knocks at, a nonce of its own, and the server's
challenge, which is drawn anew at each start of a server. The server answers with an HMAC over that proof. So whoever
takes the port of a server that has ended learns nothing that another server, another door or the next start of the
same one would take, and nothing that it says is believed. A caller that does not know the challenge yet (or any more)
is told it and calls again. Streams prove once, when they begin.

What this does not do: hide what is said, or stop somebody who sits between both ends of a network and changes it.
Mutual TLS will, in `channel.py` and `http2.py`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from aurora_ray.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SECRET_BYTES: Final = 32
PROOF_KEY: Final = "aurora-proof"  # a caller's: challenge.nonce.digest of the request.HMAC
ANSWER_KEY: Final = "aurora-answer"  # a server's: HMAC over the caller's
CHALLENGE_KEY: Final = "aurora-challenge"  # what a server that did not admit a call wants to see in the next proof
_NONCE_BYTES: Final = 16
_PROOF_LENGTHS: Final = (2 * _NONCE_BYTES, 2 * _NONCE_BYTES, 64, 64)  # of its parts, in hexadecimal digits
REFUSAL: Final = "the call does not prove that it comes from this fleet: the caller needs the fleet's secret"


class ImpostorError(StorageError):
    """Whoever answers at a server's address does not prove that it is that server of our fleet.

    A stranger has taken the port of one that ended; or it runs an aurora-ray from before there were secrets; or it is
    of another fleet. Nothing that it said counts.
    """

    retryable = True


@dataclass(frozen=True, slots=True)
class Secret:
    """What all processes of one fleet know and nobody else. Not shown when printed."""

    raw: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """A fresh one."""
        return cls(secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The inverse of `to_text`. Raises ConfigurationError."""
        try:
            raw = bytes.fromhex(text.strip())
        except ValueError:
            raw = b""
        if len(raw) != SECRET_BYTES:
            raise ConfigurationError(f"a fleet's secret is {2 * SECRET_BYTES} hexadecimal digits; this is not one")
        return cls(raw)

    def to_text(self) -> str:
        """For a file that nobody else may read."""
        return self.raw.hex()

    def subkey(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose (HKDF's expansion, RFC 5869; the secret is uniformly random)."""
        return hmac.digest(self.raw, purpose.encode() + b"\x01", "sha256")


class Holder:
    """The secret of this process's fleet. One a process, given before its first channel or server is made."""

    def __init__(self) -> None:
        self._secret: Secret | None = None

    def set(self, secret: Secret) -> None:
        """From now on."""
        self._secret = secret

    @property
    def given(self) -> bool:
        """Whether somebody has given one."""
        return self._secret is not None

    @property
    def secret(self) -> Secret:
        """Raises ConfigurationError if nobody has given one: then nothing is called and nothing served."""
        if self._secret is None:
            raise ConfigurationError("this process was not given its fleet's secret, so it can neither call nor serve")
        return self._secret


OURS: Final = Holder()


@dataclass(frozen=True, slots=True)
class Proof:
    """What goes with one call, and what the true server answers to it."""

    header: str
    answer: str

    @property
    def entry(self) -> tuple[str, str]:
        """The header, by its name."""
        return PROOF_KEY, self.header

    def is_answered(self, metadata: Iterable[Any] | None) -> bool:
        """Whether what came back holds the answer."""
        return hmac.compare_digest(_value(metadata, ANSWER_KEY).encode(), self.answer.encode())


class Caller:
    """Proves our calls to one server at one door: its port, or the path of its socket."""

    def __init__(self, server: str, door: str, secret: Secret | None = None, challenge: str = "") -> None:
        self._key = (secret or OURS.secret).subkey("calls")
        self.server, self.door = server, door
        self.challenge = challenge or "0" * _PROOF_LENGTHS[0]

    def prove(self, method: str, request: bytes = b"") -> Proof:
        """For a call of `method` ("/package.Service/Method") with these bytes; streams begin with none."""
        nonce, digest = secrets.token_hex(_NONCE_BYTES), hashlib.sha256(request).hexdigest()
        mac = _mac(self._key, method, self.server, self.door, self.challenge, nonce, digest)
        return Proof(f"{self.challenge}.{nonce}.{digest}.{mac}", _answer(self._key, mac))

    def impostor(self, address: str, said: str = "") -> ImpostorError:
        """For an answer that came without a proof."""
        what = f" (it said: {said[:200]})" if said else ""
        return ImpostorError(f"whoever answers at {address} does not prove to be our {self.server}{what}")

    def learn(self, proof: Proof, metadata: Iterable[Any] | None) -> bool:
        """Takes the challenge from a server that did not admit this proof; whether it is worth another try.

        (Another call may have learned it meanwhile.)
        """
        told = _value(metadata, CHALLENGE_KEY)
        if (
            proof.header.startswith(told + ".")
            or len(told) != _PROOF_LENGTHS[0]
            or not told.isascii()
            or not told.isalnum()
        ):
            return False
        self.challenge = told
        return True


@dataclass(frozen=True, slots=True)
class Admitted:
    """A call that proved itself. `digest` is that of its request, in hexadecimal."""

    answer: str
    digest: str

    def fits(self, request: bytes) -> bool:
        """Whether this is the request that was meant."""
        return hmac.compare_digest(hashlib.sha256(request).hexdigest(), self.digest)


class Doorkeeper:
    """Admits calls to one server. `on_refusal` is told of each call whose proof is missing or wrong."""

    def __init__(
        self, server: str, on_refusal: Callable[[], None] = lambda: None, secret: Secret | None = None
    ) -> None:
        self._key = (secret or OURS.secret).subkey("calls")
        self._server = server
        self.refuse = on_refusal
        self.challenge = secrets.token_hex(_NONCE_BYTES)

    def admit(self, method: str, proof: str, door: str) -> Admitted | None:
        """None: not admitted, which is a refusal unless the caller only did not know the challenge."""
        parts = proof.split(".") if len(proof) == sum(_PROOF_LENGTHS) + 3 else []
        if tuple(map(len, parts)) != _PROOF_LENGTHS or not proof.isascii():
            self.refuse()
            return None
        challenge, nonce, digest, mac = parts
        if not hmac.compare_digest(mac, _mac(self._key, method, self._server, door, challenge, nonce, digest)):
            self.refuse()
            return None
        if challenge != self.challenge:
            return None
        return Admitted(_answer(self._key, mac), digest)


def _mac(key: bytes, *parts: str) -> str:
    """The parts cannot run into each other: no name, path or number holds a zero byte."""
    return hmac.digest(key, "\0".join(("call", *parts)).encode(), "sha256").hex()


def _answer(key: bytes, mac: str) -> str:
    return hmac.digest(key, f"answer\0{mac}".encode(), "sha256").hex()


def _value(metadata: Iterable[Any] | None, wanted: str) -> str:
    return next((str(value) for key, value in metadata or () if key == wanted), "")

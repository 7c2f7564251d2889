"""How worker and shard prove to each other that both have the run's token, without sending it.

Each side sends a random nonce. Then each sends an HMAC (RFC 2104, SHA-256) under the token over everything
that was agreed: who speaks, the protocol's version, shard, generation, both nonces. Nobody who listens can
use a proof again, since the shard's nonce is new for each connection; nobody can send a proof back as his
own, since it says who speaks. A proof says nothing about the frames that follow it: to keep out those who
can change packets on their way takes TLS (``docs/security.md``).
"""

from __future__ import annotations

import hmac
import re
import secrets

from cirrus.errors import AuthenticationError
from cirrus.paramserver.protocol import VERSION, Challenge, Hello

NONCE_BYTES = 32
WORKER, SHARD = "worker", "shard"
_NONCE = re.compile(rf"[0-9a-f]{{{2 * NONCE_BYTES}}}")


def new_nonce() -> str:
    """Return a nonce that nobody can guess."""
    return secrets.token_hex(NONCE_BYTES)


def prove(token: str, speaker: str, challenge: Challenge, hello: Hello) -> str:
    """Return the proof that one side has the token.

    Args:
        token: The run's secret.
        speaker: :data:`WORKER` or :data:`SHARD`.
        challenge: The shard's first words.
        hello: The client's.

    Raises:
        AuthenticationError: A nonce is none.
    """
    for nonce in (challenge.nonce, hello.nonce):
        if not _NONCE.fullmatch(nonce):
            raise AuthenticationError(f"a nonce must be {NONCE_BYTES} bytes in hexadecimal")
    said = ("cirrus", speaker, VERSION, hello.shard, hello.generation, challenge.nonce, hello.nonce)
    return hmac.digest(token.encode(), "\n".join(map(str, said)).encode(), "sha256").hex()


def check(proof: str, token: str, speaker: str, challenge: Challenge, hello: Hello) -> None:
    """Compare a proof with the right one, in constant time.

    Raises:
        AuthenticationError: It is another.
    """
    right = prove(token, speaker, challenge, hello)
    if not hmac.compare_digest(proof.encode(errors="replace"), right.encode()):
        raise AuthenticationError("the token is wrong")

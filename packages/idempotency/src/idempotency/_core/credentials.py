"""Lists the header fields that carry credentials, which may change while the caller stays the same."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["is_credential"]

# Words of a field name, as its dashes and underscores divide it.
_WORDS: Final = frozenset(
    {
        "apikey",
        "assertion",
        "auth",
        "authentication",
        "authorization",
        "bearer",
        "cert",
        "certificate",
        "cookie",
        "cookie2",
        "credential",
        "credentials",
        "csrf",
        "csrftoken",
        "digest",
        "dpop",
        "hmac",
        "jwt",
        "key",
        "nonce",
        "oidc",
        "otp",
        "passwd",
        "password",
        "saml",
        "secret",
        "session",
        "sessionid",
        "sig",
        "signature",
        "sid",
        "sso",
        "ticket",
        "token",
        "xsrf",
    }
)
# What comes behind such a word in the name of a field that says who the caller is, and not how it was proved.
_SUBJECTS: Final = frozenset(
    {"account", "dn", "email", "id", "identity", "name", "sub", "subject", "user", "userid", "username"}
)
_BETWEEN_WORDS = re.compile(r"[-_.]+")


def is_credential(name: str) -> bool:
    """
    Whether a header field of this name holds a credential, by the words in its name.

    Of that kind are access tokens, API keys, cookies and sessions, signatures over a request, one-time proofs and
    client certificates. A field which names who was authenticated, such as `X-Auth-User`, is none.

    >>> [name for name in ("Authorization", "Cookie", "X-API-Key", "X-Auth-User", "X-Tenant") if is_credential(name)]
    ['Authorization', 'Cookie', 'X-API-Key']
    """
    words = _BETWEEN_WORDS.split(name.strip().lower())
    if words[-1] in _SUBJECTS and words[-2:] != ["session", "id"]:
        return False
    return not _WORDS.isdisjoint(words)

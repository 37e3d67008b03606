"""Tells which header fields carry credentials: these can change while the caller stays the same."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["is_credential"]

# Words in the name of a field that holds a credential; dashes, underscores and dots divide a name into words.
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
# The last word of a field name that says who the caller is, not how the caller proved it: `X-Auth-User`.
_SUBJECTS: Final = frozenset(
    {"account", "dn", "email", "id", "identity", "name", "sub", "subject", "user", "userid", "username"}
)
_BETWEEN_WORDS = re.compile(r"[-_.]+")


def is_credential(name: str) -> bool:
    """
    Whether a header field holds a credential, judged by the words in its name.

    Credentials are access tokens, API keys, cookies and sessions, signatures over a request, one-time proofs and
    client certificates. A field that names the authenticated user, such as `X-Auth-User`, is not a credential.

    >>> [name for name in ("Authorization", "Cookie", "X-API-Key", "X-Auth-User", "X-Tenant") if is_credential(name)]
    ['Authorization', 'Cookie', 'X-API-Key']
    """
    words = _BETWEEN_WORDS.split(name.strip().lower())
    if words[-1] in _SUBJECTS and words[-2:] != ["session", "id"]:
        return False
    return not _WORDS.isdisjoint(words)

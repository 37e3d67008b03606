"""Protects forms from other sites: a token binds an action, a record and a browser."""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256

from starlette.requests import Request

__all__ = ["COOKIE", "FormTokens"]

COOKIE = "idempotency-dashboard"


class FormTokens:
    """
    Makes and checks tokens.

    Args:
        secret: At least 16 bytes, the same in every process that serves the dashboard.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("secret must have at least 16 bytes")
        self._secret = secret

    @staticmethod
    def browser(request: Request) -> str:
        """The random name of the browser, from its cookie; a new name if there is no cookie."""
        return request.cookies.get(COOKIE) or secrets.token_urlsafe(16)

    def make(self, browser: str, *bound: str) -> str:
        """The token of one form in one browser."""
        message = "\0".join((browser, *bound)).encode("utf-8", "surrogateescape")
        return hmac.new(self._secret, message, sha256).hexdigest()

    def fits(self, request: Request, token: str, *bound: str) -> bool:
        """Whether *token* is from a form of the dashboard in this browser, and the request from its own page."""
        browser = request.cookies.get(COOKIE)
        if not browser or request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return False
        return hmac.compare_digest(self.make(browser, *bound).encode(), token.encode("utf-8", "replace"))

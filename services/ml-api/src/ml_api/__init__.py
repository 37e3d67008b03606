"""The service: `POST /predict` over a verified model, safe to retry. `ml_api.app.create_app` builds it."""

__all__ = ["Unusable"]


class Unusable(Exception):
    """Something that a command needs cannot be used; the message says what it is and what to do."""

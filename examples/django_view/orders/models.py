"""The model of an order."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """One order; its reference is the same on every attempt to place it."""

    reference: models.CharField[str, str] = models.CharField(max_length=32, unique=True)
    sku: models.CharField[str, str] = models.CharField(max_length=40)

"""The whole contract of `docs/store-contract.md`: every rule, and random histories."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from idempotency.testing._machine import machine
from idempotency.testing._rules import (
    Contract,
    R1AcquireIsOneAtomicStep,
    R2AcquireIsIdempotentPerOwner,
    R3CompleteBelongsToTheOwner,
    R4RenewNeverShortens,
    R5ReleaseForgetsRunningClaimsOnly,
    R6DurationsCrossTheBoundary,
    R7RecordsLiveAsLongAsTheyWereGiven,
    R8EveryCallIsSafeToRepeat,
    R9TheFenceRises,
)
from idempotency.testing._subject import Subject

__all__ = ["StoreContract"]


class Histories(Contract):
    """Random histories; the executable specification checks each step."""

    max_examples: int = 100
    """The number of histories; use fewer for a store that needs real time."""

    steps: int = 40
    """The most calls in one history."""

    def test_every_history_obeys_the_specification(self, subject: Subject) -> None:
        run_state_machine_as_test(
            machine(subject),
            settings=settings(
                max_examples=self.max_examples,
                stateful_step_count=self.steps,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )


class StoreContract(
    R1AcquireIsOneAtomicStep,
    R2AcquireIsIdempotentPerOwner,
    R3CompleteBelongsToTheOwner,
    R4RenewNeverShortens,
    R5ReleaseForgetsRunningClaimsOnly,
    R6DurationsCrossTheBoundary,
    R7RecordsLiveAsLongAsTheyWereGiven,
    R8EveryCallIsSafeToRepeat,
    R9TheFenceRises,
    Histories,
):
    """
    Tests for every rule of `docs/store-contract.md`, for any store: inherit from it in a class named `Test...`.

    Override `open_store`; if the store uses its server's clock, also override `make_clock` and `max_examples`.
    """

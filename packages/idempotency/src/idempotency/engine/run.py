"""A claimed operation while it runs, until one of its three ends: keep, release, abandon."""

from __future__ import annotations

from typing import Literal

from idempotency._core import actions, protocol
from idempotency._core.actions import Ending
from idempotency._core.errors import as_store_error
from idempotency._core.types import Claim
from idempotency._runtime.event_loop import running
from idempotency.engine.async_base import AsyncEngineBase
from idempotency.engine.base import RunBase
from idempotency.engine.heartbeat import Heartbeat
from idempotency.engine.request import OperationRequest
from idempotency.engine.single_flight import InFlight

__all__ = ["Run"]


class Run(RunBase[InFlight]):
    """
    A claimed operation while it runs. Its lease is renewed every lease/3 (E3) until `keep`, `release` or `abandon` is
    called; call exactly one of them.
    """

    __slots__ = ("_heartbeat",)

    _engine: AsyncEngineBase

    def __init__(
        self,
        engine: AsyncEngineBase,
        request: OperationRequest,
        claim: Claim,
        in_flight: InFlight | None,
        heartbeat: Heartbeat,
    ) -> None:
        self.request = request
        self.claim = claim
        self._engine = engine
        self._in_flight = in_flight
        self._over = self._lost = False
        self._began = engine.monotonic() if engine.hooks else 0.0
        self._heartbeat = heartbeat
        heartbeat.add(self)

    async def keep(self, outcome: bytes, *, result: Literal["kept", "unreplayable"] = "kept") -> Ending:
        """
        Record the outcome (E1, E8).

        Returns:
            `Recorded`. `Superseded` or `Refuse`: give the answer that it holds instead. `Forgotten` or `Unrecorded`:
            give the caller's own answer, which retries will not get.
        """
        self._stop()
        retention = self.request.policy.retention
        try:
            answer: actions.Event = await self._engine.store.complete(
                self.claim, outcome, retention=retention
            )
        except Exception as error:
            answer = as_store_error(error)
        except BaseException:  # cancelled during the call
            self.abandon()
            raise
        ending: Ending | None = protocol.recorded(answer)
        if ending is None:
            ending = await self._walk_record(answer, outcome)
        elif self._in_flight is None and not self._engine.hooks:
            return ending  # nobody to tell
        return self._conclude(ending, outcome, result)

    async def _walk_record(self, answer: actions.Event, outcome: bytes) -> Ending:
        """Perform the actions of `protocol.record`; *answer* is the result of the first one."""
        steps = protocol.record(self.claim, self.request.fingerprint, random=self._engine.random)
        next(steps)
        try:
            action = steps.send(answer)
            while True:
                action = steps.send(await self._perform(action, outcome))
        except StopIteration as end:
            ending: Ending = end.value
            return ending
        except BaseException:  # cancelled during a call
            self.abandon()
            raise

    async def release(self) -> None:
        """Free the key: the next request with it runs. A release that fails is repeated in the background."""
        self._stop()
        steps = protocol.release()
        action = next(steps)
        try:
            while True:
                action = steps.send(await self._perform(action, b""))
        except StopIteration:
            self._resolve_followers(None)
            self._settled("released")
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Stop renewing without a release: the outcome is unknown (E4). A duplicate may take over after the lease."""
        self._stop()
        self._resolve_followers(None)
        self._settled("abandoned")

    async def _perform(self, action: actions.Action, outcome: bytes) -> actions.Event:
        store, claim = self._engine.store, self.claim
        try:
            if action is actions.COMPLETE:
                return await store.complete(claim, outcome, retention=self.request.policy.retention)
            if action is actions.GET_RECORD:
                return await store.get(claim.key)
            if action is actions.RELEASE:
                return await store.release(claim)
        except Exception as error:
            # After a run, any failure means that the effect of the call is unknown (E8).
            return as_store_error(error)
        if isinstance(action, actions.Sleep):
            await running().sleep(action.seconds)
        else:
            assert action is actions.RELEASE_LATER
            self._engine.spawn_release(claim, self.request.operation)
        return None

    async def renew_lease(self) -> None:
        """Renew the lease once. Called by the heartbeat."""
        if self._over:
            return
        steps = protocol.renew(self.claim)
        action = next(steps)
        try:
            while True:
                action = steps.send(await self._ask(action))
        except StopIteration as end:
            self._renewed(end.value)
        except Exception as error:
            self._engine.store_failed("renew", "retrying", error, self.claim.key, self.request.operation)

    async def _ask(self, action: actions.Action) -> actions.Event:
        if action is actions.RENEW:
            return await self._engine.store.renew(self.claim, lease=self.request.policy.lease)
        assert action is actions.GET_RECORD
        return await self._engine.store.get(self.claim.key)

    def _renewed(self, result: Literal["held", "lost", "settled"]) -> None:
        if self._over or result == "held":
            return
        self._heartbeat.ticks.pop(self, None)
        if result == "lost":
            self._claim_lost()  # the run goes on, since its effect may be done; `keep` finds out what to answer

    def _stop(self) -> None:
        self._over = True
        self._heartbeat.ticks.pop(self, None)

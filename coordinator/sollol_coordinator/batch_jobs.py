"""The step of a batch, as a job in RQ: drives some batches for some seconds, for those who began them and are gone."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from sollol_broker.batch_driver import BatchDriver
from sollol_broker.batch_store import BatchStore
from sollol_broker.broker import Broker
from sollol_broker.url import BrokerUrl

from .control_jobs import url_of_environment

QUEUE = "batches"
STEP_SECONDS = 10.0
# RQ ends a job that hangs.
JOB_SECONDS = 120
# Of those that are done, and of those that failed.
KEPT_SECONDS, FAILED_KEPT_SECONDS = 60, 3600


def drive_batches(batch_ids: Sequence[str]) -> dict[str, int]:
    """Drive these for a step; gives {"batches": how many, "ended": how many of them are at their end}."""
    return asyncio.run(_drive(url_of_environment(), [str(each) for each in batch_ids]))


async def _drive(url: BrokerUrl, batch_ids: Sequence[str]) -> dict[str, int]:
    who = f"step-{secrets.token_hex(6)}"
    broker = Broker(url, name=f"sollol-{who}")
    await broker.open()
    try:
        drivers = [
            BatchDriver(BatchStore(broker), each, who=f"{who}-{number}", keeps_watch=False)
            for number, each in enumerate(batch_ids)
        ]
        await asyncio.gather(*(_step(driver) for driver in drivers))
    finally:
        await broker.close()
    ended = sum(driver.view is None or driver.view.state.is_terminal for driver in drivers)
    return {"batches": len(drivers), "ended": ended}


async def _step(driver: BatchDriver) -> None:
    try:
        async with asyncio.timeout(STEP_SECONDS):
            await driver.run()
    except TimeoutError:
        pass  # the next step goes on

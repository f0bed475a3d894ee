"""Snakemake that looks after its cluster jobs every two seconds; nothing else is changed.

The executor's own pace, 10 s slower at every look, suits jobs of hours.
"""

import asyncio

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor


async def _sleep(executor: RemoteExecutor) -> None:
    await asyncio.sleep(2)


RemoteExecutor.sleep = _sleep
main()

"""A bell wakes those who wait when it rings, and nobody else."""

import anyio
import pytest

from meshlib.client.bell import Bell

pytestmark = pytest.mark.anyio


async def test_everybody_who_waits_is_woken() -> None:
    bell, woken = Bell(), []

    async def wait(name: str, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        task_status.started()
        await bell.wait()
        woken.append(name)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            await tasks.start(wait, "one")
            await tasks.start(wait, "two")
            await anyio.wait_all_tasks_blocked()
            bell.ring()
    assert sorted(woken) == ["one", "two"]


async def test_who_comes_after_it_rang_waits_for_the_next_time() -> None:
    bell = Bell()
    bell.ring()
    with anyio.move_on_after(0.01) as patience:
        await bell.wait()
    assert patience.cancelled_caught

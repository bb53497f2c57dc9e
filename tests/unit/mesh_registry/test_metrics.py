"""What ``/metrics`` and the health pages say, read by Prometheus' own parser."""

from collections.abc import Mapping
from typing import get_args

import pytest
from mesh_registry.core import Policy
from mesh_registry.refusal import Reason
from prometheus_client.parser import text_string_to_metric_families

from meshlib.buckets import Rate
from meshlib.wire import registry as wire
from tests.unit.mesh_registry.helpers import NOON, Actor, Site

pytestmark = pytest.mark.anyio
ALICE, BOB = Actor("alice"), Actor("bob")
Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def page(site: Site) -> Samples:
    answer = await site.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert family.name.startswith(("mesh_registry_", "process_"))
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"mesh_registry_{name}", frozenset(labels.items())]


async def test_keys_left_and_handed_out() -> None:
    site = Site()
    await site.join(ALICE, 2)
    await site.join(BOB, 0)
    found = await page(site)
    assert (value(found, "agents"), value(found, "one_time_keys_left")) == (2, 2)
    assert value(found, "agents_without_one_time_keys") == 1
    for _ in range(3):
        assert (await site.send(wire.fetch_prekeys(ALICE.did), BOB)).status_code == 200
        site.clock.advance(1)
    found = await page(site)
    assert value(found, "one_time_keys_left") == 0
    assert value(found, "agents_without_one_time_keys") == 2
    assert value(found, "one_time_keys_taken_total") == 2
    assert value(found, "bundles_without_one_time_key_total") == 1
    assert value(found, "requests_total", endpoint="get_prekeys", status="200") == 3
    assert value(found, "request_seconds_count", endpoint="get_prekeys") == 3
    assert value(found, "ready") == 1


async def test_refusals_are_counted_by_reason() -> None:
    site = Site(Policy(registrations=Rate(2, 0.001)), max_agents=1)
    await site.join(ALICE, 1)
    heartbeat = wire.heartbeat(ALICE.did)
    for at, actor in ((NOON - 900, ALICE), (None, BOB)):
        assert (await site.send(heartbeat, actor, at=at)).status_code == 401
    assert (await site.send(heartbeat)).status_code == 401
    assert (await site.send(BOB.registration(site.clock.utc))).status_code == 503
    assert (await site.send(BOB.registration(site.clock.utc))).status_code == 429
    assert (await site.http.get("/v1/agents/did:mesh:nobody")).status_code == 404
    assert (await site.http.get("/v1/nothing")).status_code == 404
    assert (await site.http.patch("/v1/agents")).status_code == 405
    assert (await site.http.post("/v1/agents", content=b"[", headers={"content-type": "application/json"})).is_error
    found = await page(site)
    reasons = {
        dict(labels)["reason"]: count
        for (name, labels), count in found.items()
        if name == "mesh_registry_refused_requests_total" and count
    }
    assert reasons == {
        "clock": 1,
        "unauthenticated": 2,
        "full": 1,
        "address_rate": 1,
        "not_found": 1,
        "no_endpoint": 1,
        "method": 1,
        "malformed": 1,
    }
    assert value(found, "requests_total", endpoint="other", status="404") == 1


async def test_no_name_and_nothing_a_stranger_says_becomes_part_of_the_page() -> None:
    site = Site()
    await site.join(ALICE, 1)
    for number in range(30):
        evil = f'evil{number}"'
        for method in ("GET", "POST", "PUT", "DELETE"):
            await site.http.request(method, f"/v1/{evil}")
            await site.http.request(method, f"/v1/agents/{evil}", headers={"Authorization": evil, "X-Request-Id": evil})
        await site.http.request("EVIL", "/v1/agents")
        await site.http.get(f"/v1/discover?capability={evil}&limit={evil}")
    text = (await site.http.get("/metrics")).text
    assert "evil" not in text.lower()
    assert "did:" not in text
    found = await page(site)
    assert {dict(labels).get("reason", "clock") for _, labels in found} <= set(get_args(Reason))
    assert len(found) < 200


async def test_health_says_what_readiness_says_and_stays_200() -> None:
    site = Site()
    for path, status in (("/health", 200), ("/health/ready", 200), ("/health/live", 200)):
        assert (await site.http.get(path)).status_code == status
    site.registry.draining = True
    for path, status in (("/health", 200), ("/health/ready", 503), ("/health/live", 200)):
        answer = await site.http.get(path)
        assert answer.status_code == status
        if path != "/health/live":
            assert (answer.json()["ready"], answer.json()["reason"]) == (False, "draining")
    assert value(await page(site), "ready") == 0

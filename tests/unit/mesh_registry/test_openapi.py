import json
from typing import Any

import msgspec
from mesh_registry import bodies
from mesh_registry.api import ROUTES
from mesh_registry.openapi import PROBLEMS, document

DOCUMENT = document("1")


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*(references(child) for child in value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_the_document_describes_every_route_and_no_other() -> None:
    described = {
        (method.upper(), path, operation["operationId"])
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }
    own = {("GET", f"/{name}", name.removesuffix(".json")) for name in ("health", "metrics", "openapi.json")}
    own |= {("GET", f"/health/{name}", name) for name in ("live", "ready")}
    assert described == {(method, path, endpoint.value) for method, path, endpoint in ROUTES} | own


def test_every_reference_leads_somewhere() -> None:
    for reference in references(DOCUMENT):
        place: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT


def test_path_parameters_are_declared() -> None:
    for path, item in DOCUMENT["paths"].items():
        assert ("{did}" in path) == any(parameter["name"] == "did" for parameter in item.get("parameters", []))


def test_every_operation_says_how_it_fails_and_who_may() -> None:
    for item in DOCUMENT["paths"].values():
        for method, operation in item.items():
            if method == "parameters":
                continue
            assert "500" in operation["responses"]
            assert "security" in operation
            signed = [{"Ed25519Timestamp": []}, {"Ed25519Timestamp": [], "BoundRequest": []}]
            if {"401", "403"} <= operation["responses"].keys():
                assert operation["security"] == signed
    assert set(DOCUMENT["components"]["responses"]) == {str(status) for status in PROBLEMS}


def test_body_schemas_have_the_members_that_are_read() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    pairs = (
        (bodies.RegisterBody, schemas["Registration"], {"proof", "proof_timestamp"}),
        (bodies.UpdateBody, schemas["Update"], set()),
        (bodies.PrekeysBody, schemas["Prekeys"], set()),
        (bodies.SignedPrekeyBody, schemas["SignedPrekey"], set()),
        (bodies.OneTimePrekeyBody, schemas["OneTimePrekey"], set()),
        (bodies.ReputationBody, schemas["Rating"], set()),
        (bodies.SessionBody, schemas["SessionReport"], set()),
        (bodies.VerifyBody, schemas["Verification"], set()),
    )
    for body, schema, with_proof in pairs:
        fields = msgspec.structs.fields(body)
        assert set(schema["properties"]) == {field.name for field in fields}
        assert set(schema["required"]) == {field.name for field in fields if field.required} | with_proof

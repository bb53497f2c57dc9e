"""The OpenAPI document. Written by hand, because it is a promise; a test compares it with routes and answers."""

from typing import Any

from mesh_registry.bodies import (
    MAX_BODY,
    MAX_CAPABILITIES,
    MAX_CAPABILITIES_SIZE,
    MAX_CAPABILITY,
    MAX_KEY_ID,
    MAX_METADATA_ENTRIES,
    MAX_METADATA_KEY,
    MAX_METADATA_VALUE,
    MAX_PREKEYS_BODY,
    MAX_TEXT,
    MAX_TOKEN,
)
from mesh_registry.core import DEFAULT_LIMIT, HEARTBEAT_INTERVAL, MAX_LIMIT
from mesh_registry.verbs import MAX_ONE_TIME_KEYS

Json = dict[str, Any]

PROBLEMS = {
    400: "The body is not JSON, not UTF-8, or names a member twice.",
    401: "The request does not prove who sent it. `detail` says what is missing and, for a stale timestamp, our time.",
    403: "The proof is that of another agent.",
    404: "There is no such agent, or it has published no prekeys.",
    405: "The endpoint does not know the method.",
    408: "The request did not arrive in time.",
    409: "It exists already, or this very request has been carried out before.",
    413: f"The body is too long: {MAX_BODY} bytes, for prekeys {MAX_PREKEYS_BODY}.",
    415: "Content-Type is not application/json.",
    422: "The JSON or the query is not what the endpoint takes; `detail` names the member.",
    429: "Too soon: try again after `Retry-After` seconds.",
    500: "An error of the registry.",
    503: "The registry cannot do it at the moment, or is not set up for it: try again after `Retry-After` seconds.",
}

_TEXT: Json = {"type": "string", "maxLength": MAX_TEXT}
_KEY: Json = {
    "type": "string",
    "description": "base64url of 32 bytes",
    "examples": ["Ac-A9oYggNofbqBbuA16ezS9belVqnGWdwz4NhwjAWo"],
}
_SIGNATURE: Json = {"type": "string", "description": "base64url of 64 bytes"}
_KEY_ID: Json = {"type": "integer", "minimum": 0, "maximum": MAX_KEY_ID}
_SCORE: Json = {"type": "number", "minimum": 0, "maximum": 1}
_COUNT: Json = {"type": "integer", "minimum": 0}
_TIME: Json = {"type": "string", "format": "date-time"}
_DID: Json = {"type": "string", "examples": ["did:mesh:f83f1de79b711dc9b3d4a591ac968c5d"]}
_CAPABILITIES: Json = {
    "type": "array",
    "items": {"type": "string", "minLength": 1, "maxLength": MAX_CAPABILITY},
    "maxItems": MAX_CAPABILITIES,
    "description": f"The first one is the display name. {MAX_CAPABILITIES_SIZE} bytes of UTF-8 in all.",
}
_METADATA: Json = {
    "type": "object",
    "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE},
    "propertyNames": {"maxLength": MAX_METADATA_KEY},
    "maxProperties": MAX_METADATA_ENTRIES,
}


def _object(required: str, **properties: Json) -> Json:
    return {"type": "object", "required": required.split(), "properties": properties}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_READINESS: Json = {
    "ready": {"type": "boolean"},
    "reason": {"enum": ["draining", "disk_full", "commit_failed", None], "description": "why not"},
}


_SCHEMAS: Json = {
    "Problem": _object("detail", detail={"type": "string"}),
    "Registration": _object(
        "public_key proof proof_timestamp",
        public_key=_KEY,
        proof={
            **_SIGNATURE,
            "description": "base64url Ed25519 signature over the texts of public_key and proof_timestamp",
        },
        proof_timestamp={**_TIME, "description": "with offset, at most 5 minutes off"},
        did={**_DID, "description": "optional; if given, it must be that of public_key"},
        capabilities=_CAPABILITIES,
        metadata=_METADATA,
    ),
    "LegacyRegistration": _object(
        "did public_key",
        did={**_DID, "description": "any DID outside did:mesh:"},
        public_key={**_KEY, "description": "X25519"},
        capabilities=_CAPABILITIES,
        metadata=_METADATA,
    ),
    "Registered": _object("did status", did=_DID, status={"type": "string", "const": "registered"}),
    "Update": _object("", capabilities=_CAPABILITIES, metadata=_METADATA),
    "Agent": _object(
        "did capabilities metadata registered_at last_seen reputation_score total_sessions successful_sessions"
        " failed_sessions timeout_sessions last_session_at completion_rate tier verified_app_id verified_tenant_id"
        " verified_at public_key one_time_keys_left registration online",
        did=_DID,
        capabilities=_CAPABILITIES,
        metadata=_METADATA,
        registered_at=_TIME,
        last_seen=_TIME,
        reputation_score=_SCORE,
        total_sessions=_COUNT,
        successful_sessions=_COUNT,
        failed_sessions=_COUNT,
        timeout_sessions=_COUNT,
        last_session_at=_or_null(_TIME),
        completion_rate=_or_null(_SCORE),
        tier={"enum": ["anonymous", "verified"]},
        verified_app_id=_or_null({"type": "string"}),
        verified_tenant_id=_or_null({"type": "string"}),
        verified_at=_or_null(_TIME),
        public_key={**_or_null(_KEY), "description": "Ed25519; null for a legacy agent without prekeys"},
        one_time_keys_left=_COUNT,
        registration={"enum": ["pop", "legacy"], "description": "with proof of possession (agt-5), or without (agt-4)"},
        online={"type": "boolean"},
    ),
    "SignedPrekey": _object("key_id public_key signature", key_id=_KEY_ID, public_key=_KEY, signature=_SIGNATURE),
    "OneTimePrekey": _object("key_id public_key", key_id=_KEY_ID, public_key=_KEY),
    "Prekeys": _object(
        "identity_key identity_key_ed",
        identity_key={**_KEY, "description": "X25519 form of identity_key_ed"},
        identity_key_ed={**_KEY, "description": "the registered Ed25519 key"},
        signed_pre_key={**_ref("SignedPrekey"), "description": "required unless merged into a bundle that has one"},
        one_time_pre_keys={"type": "array", "items": _ref("OneTimePrekey"), "maxItems": MAX_ONE_TIME_KEYS},
        mode={"enum": ["replace", "merge"], "default": "replace"},
    ),
    "Published": _object("did otk_count", did=_DID, otk_count=_COUNT),
    "Bundle": _object(
        "identity_key identity_key_ed signed_pre_key one_time_pre_key",
        identity_key=_KEY,
        identity_key_ed=_KEY,
        signed_pre_key=_ref("SignedPrekey"),
        one_time_pre_key={**_or_null(_ref("OneTimePrekey")), "description": "handed out once"},
    ),
    "Presence": _object("did last_seen online", did=_DID, last_seen=_TIME, online={"type": "boolean"}),
    "Seen": _object("did last_seen", did=_DID, last_seen=_TIME),
    "Rating": _object("score", score=_SCORE, reason=_TEXT),
    "Reputation": _object("did reputation_score", did=_DID, reputation_score=_SCORE),
    "SessionReport": _object(
        "session_id initiator_amid receiver_amid outcome reporter_amid",
        session_id=_TEXT,
        initiator_amid=_DID,
        receiver_amid=_DID,
        outcome={"enum": ["success", "failed", "timeout"]},
        reporter_amid={**_DID, "description": "the caller, one of the two"},
        intent=_TEXT,
        started_at=_TEXT,
        timestamp=_TEXT,
        signature=_TEXT,
    ),
    "SessionRecorded": _object(
        "session_id outcome reputation",
        session_id={"type": "string"},
        outcome={"type": "string"},
        reputation={"type": "object", "additionalProperties": _SCORE},
    ),
    "Verification": _object(
        "amid verification_token",
        amid={**_DID, "description": "the caller"},
        verification_token={"type": "string", "minLength": 1, "maxLength": MAX_TOKEN},
    ),
    "Verified": _object(
        "did amid tier verified_app_id verified_tenant_id verified_at",
        did=_DID,
        amid=_DID,
        tier={"enum": ["anonymous", "verified"]},
        verified_app_id=_or_null({"type": "string"}),
        verified_tenant_id=_or_null({"type": "string"}),
        verified_at=_or_null(_TIME),
    ),
    "Page": _object(
        "results total",
        results={
            "type": "array",
            "items": _object(
                "did capabilities reputation_score last_seen online",
                did=_DID,
                capabilities=_CAPABILITIES,
                reputation_score=_SCORE,
                last_seen=_TIME,
                online={"type": "boolean"},
            ),
        },
        total={**_COUNT, "description": "agents that match, counted up to 200"},
    ),
    "Health": _object(
        "status service",
        status={"enum": ["healthy", "degraded"]},
        service={"type": "string"},
        version={"type": "string"},
        agents=_COUNT,
        **_READINESS,
    ),
    "Live": _object("live", live={"type": "boolean", "const": True}),
    "Ready": _object("ready reason", **_READINESS),
}

_BODY_PROBLEMS = (400, 408, 413, 415, 422)
_SIGNED: list[Json] = [{"Ed25519Timestamp": []}, {"Ed25519Timestamp": [], "BoundRequest": []}]
_SIGNED_OR_NOT: list[Json] = [{}, *_SIGNED]


def _operation(
    name: str,
    summary: str,
    answer: str | None,
    problems: tuple[int, ...],
    *,
    status: int = 200,
    body: Json | None = None,
    security: list[Json] | None = None,
    query: tuple[Json, ...] = (),
    media: str = "application/json",
) -> Json:
    described = {"description": summary}
    responses: Json = {str(status): described}
    if answer is not None:
        schema = _ref(answer) if answer in _SCHEMAS else {"type": answer}
        responses[str(status)] = described | {"content": {media: {"schema": schema}}}
    wanted = {*problems, 500, *(_BODY_PROBLEMS if body is not None else ())}
    responses |= {str(code): {"$ref": f"#/components/responses/{code}"} for code in sorted(wanted)}
    operation: Json = {"operationId": name, "summary": summary, "responses": responses, "security": security or []}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if query:
        operation["parameters"] = list(query)
    return operation


def _ready() -> Json:
    operation = _operation("ready", "Whether requests should be sent here.", "Ready", ())
    body = {"application/json": {"schema": _ref("Ready")}}
    operation["responses"]["503"] = {"description": "Not at the moment; `reason` says why.", "content": body}
    return operation


def _paths() -> Json:
    did = {"name": "did", "in": "path", "required": True, "schema": _DID, "description": "percent-encoded"}
    capability = {"name": "capability", "in": "query", "required": True, "schema": {"type": "string"}}
    limit = {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    }
    registration = {"oneOf": [_ref("Registration"), _ref("LegacyRegistration")]}
    return {
        "/v1/agents": {
            "post": _operation(
                "register", "Register an agent.", "Registered", (401, 409, 429, 503), status=201, body=registration,
                security=_SIGNED_OR_NOT,
            ),
        },
        "/v1/agents/{did}": {
            "parameters": [did],
            "get": _operation(
                "get_agent", "What is known about an agent.", "Agent", (404, 429), security=_SIGNED_OR_NOT
            ),
            "put": _operation(
                "update", "Its owner changes capabilities or metadata.", "Agent", (401, 403, 404, 409, 503),
                body=_ref("Update"), security=_SIGNED,
            ),
            "delete": _operation(
                "delete", "Its owner removes an agent.", None, (401, 403, 404, 409, 503), status=204, security=_SIGNED
            ),
        },
        "/v1/agents/{did}/prekeys": {
            "parameters": [did],
            "put": _operation(
                "put_prekeys", "Publish prekeys: replace them all, or add to those still there.", "Published",
                (401, 403, 404, 409, 503), body=_ref("Prekeys"), security=_SIGNED,
            ),
            "get": _operation(
                "get_prekeys", "Fetch a bundle, and with it a one-time key nobody else gets.", "Bundle", (404, 503),
                security=_SIGNED_OR_NOT,
            ),
        },
        "/v1/agents/{did}/presence": {
            "parameters": [did],
            "get": _operation(
                "presence", "When an agent was last seen.", "Presence", (404, 429), security=_SIGNED_OR_NOT
            ),
        },
        "/v1/agents/{did}/heartbeat": {
            "parameters": [did],
            "post": _operation(
                "heartbeat", f"Say that the agent is there, at most every {HEARTBEAT_INTERVAL:.0f} s.", "Seen",
                (401, 403, 404, 409, 429, 503), security=_SIGNED,
            ),
        },
        "/v1/agents/{did}/reputation": {
            "parameters": [did],
            "post": _operation(
                "reputation", "Rate another agent.", "Reputation", (401, 403, 404, 409, 503), body=_ref("Rating"),
                security=_SIGNED,
            ),
        },
        "/v1/registry/reputation/session": {
            "post": _operation(
                "session", "Report how a session ended.", "SessionRecorded", (401, 403, 404, 409, 503),
                body=_ref("SessionReport"), security=_SIGNED,
            ),
        },
        "/v1/registry/verify": {
            "post": _operation(
                "verify", "Earn the tier `verified` with a token of the identity provider.", "Verified",
                (401, 403, 404, 409, 503), body=_ref("Verification"), security=_SIGNED,
            ),
        },
        "/v1/discover": {
            "get": _operation(
                "discover", "Agents with exactly this capability, the freshest first.", "Page", (422, 429),
                security=_SIGNED_OR_NOT, query=(capability, limit),
            ),
        },
        "/health": {"get": _operation("health", "Whether the registry works; always 200.", "Health", ())},
        "/health/live": {"get": _operation("live", "That the registry answers.", "Live", ())},
        "/health/ready": {"get": _ready()},
        "/metrics": {
            "get": _operation("metrics", "Counters in Prometheus text format.", "string", (), media="text/plain")
        },
        "/openapi.json": {"get": _operation("openapi", "This document.", "object", ())},
    }  # fmt: skip


def document(version: str) -> Json:
    """The OpenAPI 3.1 document."""
    problem = {"application/json": {"schema": _ref("Problem")}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mesh-registry",
            "version": version,
            "description": "Who is there, and the prekeys to reach them. Nobody needs to believe the registry: a "
            "`did:mesh:` DID is the hash of the agent's key, and clients check.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": _paths(),
        "components": {
            "schemas": _SCHEMAS,
            "responses": {str(code): {"description": text, "content": problem} for code, text in PROBLEMS.items()},
            "securitySchemes": {
                "Ed25519Timestamp": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`Ed25519-Timestamp <did> <ISO timestamp> <base64url signature over the timestamp>`,"
                    " at most 5 minutes off. Each signature serves one request; the same request may be repeated.",
                },
                "BoundRequest": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Mesh-Request-Signature",
                    "description": "base64url signature over `mesh-registry-request-v1`, DID, timestamp, method, "
                    "target and hex SHA-256 of the body, joined by line feeds. An agent that has sent one always must.",
                },
            },
        },
    }

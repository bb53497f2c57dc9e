"""Every recorded vector, by the same code as ``python vectors/check.py``."""

from pathlib import Path

import pytest

from vectors.check import CHECKERS, check_file, describe

ROOT = Path(__file__).resolve().parents[2] / "vectors"
FILES = sorted(ROOT.rglob("*.json"))
EXPECTED_TYPES = {
    "RatchetConversation", "RatchetResume", "ChannelConversation", "ChannelEstablish", "ChannelCrossProfile",
    "KdfRoot", "KdfChain", "X3dhKdf", "X3dhAgreement", "X3dhInitiate", "X3dhRespond",
    "Ed25519ToX25519KeyPair", "DidFromEd25519PublicKey", "MeshClientActiveDid",
    "ClientFrame", "RelayUrl", "EncryptedMessage", "PlaintextMessage", "SessionTranscript", "Receive",
    "JsonStringifyNumber", "JsonStringifyString", "JsonParsePayload", "Base64Decode", "Base64UrlDecode",
    "AtobDecode", "EncodeUriComponent", "IsoTimestamp",
    "Register", "UploadPrekeys", "FetchPrekeys", "Discover", "GetAgent", "DeleteAgent", "MeshClientRegistration",
    "MeshClientWithRealRegistry",
    "FeaturesConnect", "ChallengeProof", "ConnectedFrame", "ReceiptFrame", "BoundRequest",
}  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_vector_file_passes(path: Path) -> None:
    report = check_file(path)
    assert report.passed, describe(report, terminal=False)
    assert report.tests > 0


def test_every_type_ever_recorded_has_a_checker() -> None:
    assert CHECKERS.keys() >= EXPECTED_TYPES


def test_no_recorded_file_has_gone() -> None:
    assert {str(path.relative_to(ROOT)) for path in FILES} >= {
        "x3dh/did.json", "x3dh/ed25519_to_x25519.json", "x3dh/x3dh_agt4.json", "x3dh/x3dh_agt5.json",
        "ratchet/kdf.json", "ratchet/ratchet_agt5.json", "ratchet/channel_agt4.json", "ratchet/channel_agt5.json",
        "wire/frames_agt4.json", "wire/frames_agt5.json", "wire/js_encoding.json",
        "registry/registry_http_agt4.json", "registry/registry_http_agt5.json",
        "extensions/connect.json", "extensions/relay_answers.json", "extensions/bound_requests.json",
    }  # fmt: skip

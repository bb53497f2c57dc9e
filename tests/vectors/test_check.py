"""``vectors/check.py`` finds what is wrong with a file, whatever is wrong with it."""

import copy
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vectors.check import CHECKERS, check_file, main

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "vectors"

Path_ = tuple[str | int, ...]
LENIENT = {"MayReject", "MayAcceptAfterError", "StateMutatedOnError", "UpstreamVulnerability", "UpstreamCrash"}
OUTPUTS = {
    "newRootKey", "chainKey", "messageKey", "nextChainKey", "messageKeys", "finalChainKey", "sharedSecret",
    "associatedData", "initiatorAssociatedData", "responderAssociatedData", "dh1", "dh2", "dh3", "dh4",
    "ephemeralPublic", "usedOneTimeKeyId", "headerBytes", "aad", "ciphertext", "plaintext", "stateAfter",
    "stateAfterSha256", "initiatorStateAfter", "responderStateAfter", "frame", "writes", "delivered", "wsUrl",
    "did", "activeDid", "x25519Private", "x25519Public", "json", "utf8OfJson", "reserialized", "bytes", "encoded",
    "iso", "method", "url", "headers", "returns", "statement", "signature", "nonce", "value", "doubleBits",
    "ed25519Public", "ed25519Private", "establishment", "oneTimePreKeyIdsAfter",
}  # fmt: skip
"""Members that record what comes out, or what goes in and shows in what comes out."""
INPUTS = {("JsonParsePayload", "bytes"), ("RatchetResume", "B"), ("MeshClientActiveDid", "ed25519Public")}
"""Recorded inputs of those names, where several inputs give one output."""
COMMENTARY = {"comment", "error", "errorClass", "detail", "js", "warnings", "response", "input"}
"""Members whose text decides nothing, or which may differ without showing."""
TRANSCRIPTS = {"SessionTranscript", "Receive"}
"""Types that are judged by their steps; ``result`` says whether one of several inputs was taken."""
LARGEST = 60_000
"""Bytes of a test that is mutated here; the largest take seconds each."""


def documents() -> Iterator[dict[str, Any]]:
    for path in sorted(VECTORS.rglob("*.json")):
        yield json.loads(path.read_bytes())


def single(document: dict[str, Any], group: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    return {**document, "numberOfTests": 1, "testGroups": [{**group, "tests": [test]}]}


def honest_tests(kind: str) -> list[dict[str, Any]]:
    """Files of one valid test each, of those without any licence to differ."""
    return [
        single(document, group, test)
        for document in documents()
        for group in document["testGroups"]
        if group["type"] == kind
        for test in group["tests"]
        if test["result"] == "valid" and not LENIENT.intersection(test["flags"]) and len(json.dumps(test)) < LARGEST
    ]


def leaves(value: Any, path: Path_ = (), told: bool = False) -> Iterator[Path_]:
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in COMMENTARY:
                yield from leaves(child, (*path, key), told or key in OUTPUTS)
    elif told and value not in ("", None):
        yield path


def outputs(kind: str, document: dict[str, Any]) -> list[Path_]:
    paths = [path for path in leaves(document["testGroups"][0]["tests"][0]) if (kind, path[0]) not in INPUTS]
    if kind in TRANSCRIPTS:  # whole conversations: much goes in and never shows, what is written and handed over must
        return [path for path in paths if "delivered" in path or (path[-1] == "frame" and "writes" in path)]
    return paths


def altered(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    place = chance.randrange(len(value))
    return value[:place] + ("1" if value[place] != "1" else "2") + value[place + 1 :]


def mutate(document: dict[str, Any], path: Path_, chance: random.Random) -> dict[str, Any]:
    mutant = copy.deepcopy(document)
    target = mutant["testGroups"][0]["tests"][0]
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = altered(target[path[-1]], chance)
    return mutant


def write(folder: Path, content: object) -> Path:
    path = folder / "mutant.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def small() -> dict[str, Any]:
    return honest_tests("IsoTimestamp")[0]


@pytest.mark.parametrize("kind", sorted(CHECKERS))
def test_one_changed_character_of_an_output_fails(kind: str, tmp_path: Path) -> None:
    chance = random.Random(kind)
    candidates = [document for document in honest_tests(kind) if outputs(kind, document)]
    assert candidates
    for document in chance.sample(candidates, min(3, len(candidates))):
        assert check_file(write(tmp_path, document)).passed
        paths = outputs(kind, document)
        for path in chance.sample(paths, min(12, len(paths))):
            mutant = mutate(document, path, chance)
            assert not check_file(write(tmp_path, mutant)).passed, f"{kind}: {path} can be anything"


@pytest.mark.parametrize("kind", sorted(CHECKERS.keys() - TRANSCRIPTS))
def test_a_valid_test_called_invalid_fails(kind: str, tmp_path: Path) -> None:
    for document in honest_tests(kind)[:3]:
        mutant = copy.deepcopy(document)
        mutant["testGroups"][0]["tests"][0]["result"] = "invalid"
        assert not check_file(write(tmp_path, mutant)).passed


@pytest.mark.parametrize(
    "change",
    [
        {"testGroups": []},
        {"testGroups": {}},
        {"testGroups": [{"type": "IsoTimestamp", "tests": []}], "numberOfTests": 0},
        {"testGroups": ["x"]},
        {"numberOfTests": 2},
        {"numberOfTests": 0},
        {"numberOfTests": True},
        {"numberOfTests": "1"},
        {"profile": "agt-6"},
        {"profile": None},
        {"notes": None},
        {"algorithm": None},
        {"generatorVersion": None},
    ],
)
def test_a_file_out_of_format_fails(change: dict[str, Any], small: dict[str, Any], tmp_path: Path) -> None:
    assert check_file(write(tmp_path, small)).passed
    assert not check_file(write(tmp_path, {**small, **change})).passed


@pytest.mark.parametrize(
    "change",
    [
        {"result": "acceptable"},
        {"result": None},
        {"tcId": "1"},
        {"tcId": None},
        {"flags": None},
        {"flags": ["NobodyExplainsThis"]},
        {"flags": [5]},
        {"comment": None},
        {"epochMs": None},
        {"iso": None},
    ],
)
def test_a_test_out_of_format_fails(change: dict[str, Any], small: dict[str, Any], tmp_path: Path) -> None:
    small["testGroups"][0]["tests"][0].update(change)
    assert not check_file(write(tmp_path, small)).passed


@pytest.mark.parametrize("content", ["", " ", "null", "[]", "5", "not json", "{", "[" * 100_000, '{"a":NaN}', "{}"])
def test_what_is_no_vector_file_fails(content: str, tmp_path: Path) -> None:
    assert not check_file(write(tmp_path, content)).passed


def test_a_member_given_twice_fails(small: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(small).replace('"epochMs"', '"epochMs": 0, "epochMs"')
    assert not check_file(write(tmp_path, text)).passed


def test_a_number_of_a_test_used_twice_fails(small: dict[str, Any], tmp_path: Path) -> None:
    group = small["testGroups"][0]
    twice = {**small, "numberOfTests": 2, "testGroups": [{**group, "tests": group["tests"] * 2}]}
    assert not check_file(write(tmp_path, twice)).passed


def test_an_unknown_type_fails(small: dict[str, Any], tmp_path: Path) -> None:
    small["testGroups"][0]["type"] = "isoTimestamp"
    report = check_file(write(tmp_path, small))
    assert [failure.reason for failure in report.failures] == ["unknown type"]


def test_a_missing_file_fails(tmp_path: Path) -> None:
    assert not check_file(tmp_path / "gone.json").passed


def test_a_folder_without_vectors_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("failed ")


def test_one_bad_file_among_good_ones_fails_the_run(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "good.json").write_text(json.dumps(small))
    assert main([str(tmp_path)]) == 0
    (tmp_path / "bad.json").write_text("{}")
    assert main([str(tmp_path)]) == 1
    verdicts = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert verdicts == ["passed", "failed", "passed"]


def test_a_failed_file_takes_one_line_with_ids_and_reasons(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = small["testGroups"][0]
    wrong = [{**group["tests"][0], "tcId": number, "iso": "a\nb"} for number in range(1, 9)]
    path = write(tmp_path, {**small, "numberOfTests": 8, "testGroups": [{**group, "tests": wrong}]})
    assert main([str(path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"failed {path} 8 tests (IsoTimestamp 8): 8 failed; tcId 1 IsoTimestamp: ")
    assert line.endswith("and tcId 6, 7, 8")


def test_machines_get_json(small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small["testGroups"][0]["tests"][0]["iso"] = "yesterday"
    path = write(tmp_path, small)
    assert main(["--json", str(path)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["file"], report["verdict"], report["tests"]) == (str(path), "failed", 1)
    assert [failure["type"] for failure in report["failures"]] == ["IsoTimestamp"]


def test_it_runs_as_a_script_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(VECTORS / "check.py"), str(VECTORS / "wire" / "js_encoding.json")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("passed ")
    assert done.stdout.count("\n") == 1

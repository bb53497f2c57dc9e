"""What a runtime returned, checked and without thoughts: the one place every outcome passes, whatever made it."""

from pathlib import Path
from typing import NamedTuple

from meshlib.responder.runtimes.protocol import Done, Failed, Outcome
from meshlib.responder.runtimes.reasoning import without_reasoning
from meshlib.wire.envelopes import Telemetry


class Checked(NamedTuple):
    """An outcome that may be answered, and what stays here."""

    outcome: Outcome
    reasoning: str


def checked(outcome: object) -> Checked:
    """Take the thinking out of an outcome. What is left empty by that is no answer.

    Raises:
        TypeError: foreign code returned something else, or put something else into it.
    """
    match outcome:
        case Done(content=str(), telemetry=Telemetry()):
            answer, reasoning = without_reasoning(outcome.content)
            thoughts = "\n".join(filter(None, (outcome.reasoning, reasoning)))
            if not answer:
                return Checked(Failed("the agent gave an empty answer", "it only thought" * bool(thoughts)), thoughts)
            files = tuple(Path(path) for path in outcome.artifacts)
            return Checked(Done(answer, outcome.telemetry, files), thoughts)
        case Failed(reason=str(), error=str()):
            reason, reasoning = without_reasoning(outcome.reason)
            return Checked(Failed(reason or "the agent failed", outcome.detail, outcome.error), reasoning)
        case _:
            raise TypeError(f"a runtime returns Done or Failed, of texts, not {type(outcome).__name__}")

"""An agent that answers while nobody drives it."""

from meshlib.responder.policy import AfterCrash, Policy
from meshlib.responder.service import Responder, respond

__all__ = ["AfterCrash", "Policy", "Responder", "respond"]

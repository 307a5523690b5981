"""What may be concluded from a fit: identifiability, standard errors, selection among models."""

from daskem.inference.diagnosis import Diagnosis, diagnose
from daskem.inference.findings import Finding
from daskem.inference.selection import Candidate, Selection, select

__all__ = ["Candidate", "Diagnosis", "Finding", "Selection", "diagnose", "select"]

"""What may be concluded from a fit: identifiability and standard errors."""

from daskem.inference.diagnosis import Diagnosis, diagnose
from daskem.inference.findings import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]

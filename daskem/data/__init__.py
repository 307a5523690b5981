"""Where rows come from and go to: sources, work units, integrity, writers."""

from daskem.data.dataset import Dataset as Dataset
from daskem.data.dataset import Memory as Memory
from daskem.data.dataset import is_array_like as is_array_like
from daskem.data.dataset import open_dataset as open_dataset
from daskem.data.fingerprint import check_unchanged as check_unchanged
from daskem.data.fingerprint import fingerprint as fingerprint
from daskem.data.fingerprint import stamps as stamps
from daskem.data.integrity import missing_chunks as missing_chunks
from daskem.data.source import Source as Source
from daskem.data.sources import open_source as open_source
from daskem.data.units import Unit as Unit
from daskem.data.units import plan_units as plan_units
from daskem.data.writers import Output as Output
from daskem.data.writers import create_output as create_output

__all__ = [
    "Dataset",
    "Memory",
    "Output",
    "Source",
    "Unit",
    "check_unchanged",
    "create_output",
    "fingerprint",
    "is_array_like",
    "missing_chunks",
    "open_dataset",
    "open_source",
    "plan_units",
    "stamps",
]

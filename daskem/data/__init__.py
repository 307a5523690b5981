"""Where rows come from and go to: sources, work units, integrity, writers."""

from daskem.data.integrity import missing_chunks as missing_chunks
from daskem.data.source import Source as Source
from daskem.data.sources import open_source as open_source
from daskem.data.units import Unit as Unit
from daskem.data.units import plan_units as plan_units
from daskem.data.writers import Output as Output
from daskem.data.writers import create_output as create_output

__all__ = ["Output", "Source", "Unit", "create_output", "missing_chunks", "open_source", "plan_units"]

"""Where code runs: passes over the data as Dask tasks, planned before they begin."""

from daskem.engine.arithmetic import warn_of_unlike_workers
from daskem.engine.blas import one_blas_thread
from daskem.engine.examination import (
    ON_BAD_UNIT,
    LeftOut,
    check_on_bad_unit,
    leave_out,
    usable_rows,
    warn_of_left_out,
    without_bad_units,
)
from daskem.engine.passes import Engine, start_engine
from daskem.engine.patterns import COMPRESS_MODES, CompressedProblem, check_compress, compressed
from daskem.engine.planner import CACHE_MODES, Plan, parse_bytes
from daskem.engine.problem import DataProblem
from daskem.engine.rows import eager_rows, write_rows

__all__ = [
    "CACHE_MODES",
    "COMPRESS_MODES",
    "ON_BAD_UNIT",
    "CompressedProblem",
    "DataProblem",
    "Engine",
    "LeftOut",
    "Plan",
    "check_compress",
    "check_on_bad_unit",
    "compressed",
    "eager_rows",
    "leave_out",
    "one_blas_thread",
    "parse_bytes",
    "start_engine",
    "usable_rows",
    "warn_of_left_out",
    "warn_of_unlike_workers",
    "without_bad_units",
    "write_rows",
]

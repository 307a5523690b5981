"""What daskem raises. Each error is also a builtin, so that ``except ValueError`` goes on working."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ClusterError",
    "ContractError",
    "DaskEMError",
    "DaskEMWarning",
    "DataError",
    "DataTypeError",
    "DegenerateComponentError",
    "FileFormatError",
    "MissingCapabilityError",
    "NonFiniteError",
    "OptionError",
    "PlanError",
]


class DaskEMError(Exception):
    """Any error that daskem raises on purpose."""


class OptionError(DaskEMError, ValueError):
    """An option has a value that cannot work; nothing was read or written."""


class DataError(DaskEMError, ValueError):
    """The data cannot be used: wrong shape, type, length, or something is missing from the store."""


class DataTypeError(DataError, TypeError):
    """The data are of a kind that cannot be used: sparse, masked, or objects that are not numbers."""


class NonFiniteError(DataError):
    """NaN or infinity where a number is needed; the message names the store, the chunk and the rows."""


class PlanError(DaskEMError, MemoryError):
    """The work cannot fit into the memory it may use; found before anything was read."""


class ContractError(DaskEMError, TypeError):
    """A model, source or algorithm does not keep its contract; the message says which part."""


class MissingCapabilityError(ContractError):
    """A model lacks an optional method that was asked for; the message says what to implement."""


class DegenerateComponentError(DaskEMError, ArithmeticError):
    """A component is empty or has collapsed onto a few points, and the policy is to raise."""


class FileFormatError(DaskEMError, ValueError):
    """A file is not what it says it is, is damaged, or comes from a newer version."""


class CheckpointError(DaskEMError, OSError):
    """Checkpoints cannot be written, belong to another fit or to a run that lives, or are not there."""


class ClusterError(DaskEMError, RuntimeError):
    """A Dask cluster was lost: its scheduler, all of its workers, or each worker that began a certain task."""


class DaskEMWarning(UserWarning):
    """Something that a user should know and that does not make the result wrong."""

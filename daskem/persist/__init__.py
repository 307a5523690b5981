"""What outlives a run: model files and checkpoints, without pickle."""

from daskem.persist.checkpoint import RESUME, Checkpoints, SavedFit, SavedRun, latest_progress, read_checkpoint
from daskem.persist.identity import describe, digest, record_classes
from daskem.persist.model_file import (
    LoadedModel,
    check_new_file,
    check_storable,
    inspect_model,
    is_model_file,
    load_model,
    save_model,
)
from daskem.persist.paths import AnyPath, any_path

__all__ = [
    "RESUME",
    "AnyPath",
    "Checkpoints",
    "LoadedModel",
    "SavedFit",
    "SavedRun",
    "any_path",
    "check_new_file",
    "check_storable",
    "describe",
    "digest",
    "inspect_model",
    "is_model_file",
    "latest_progress",
    "load_model",
    "read_checkpoint",
    "record_classes",
    "save_model",
]

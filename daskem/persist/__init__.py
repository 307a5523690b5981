"""What outlives a run: model files and checkpoints, without pickle."""

from daskem.persist.checkpoint import RESUME, Checkpoints, SavedFit, SavedRun, read_checkpoint
from daskem.persist.identity import describe, record_classes
from daskem.persist.model_file import (
    LoadedModel,
    check_new_file,
    check_storable,
    inspect_model,
    is_model_file,
    load_model,
    save_model,
)

__all__ = [
    "RESUME",
    "Checkpoints",
    "LoadedModel",
    "SavedFit",
    "SavedRun",
    "check_new_file",
    "check_storable",
    "describe",
    "inspect_model",
    "is_model_file",
    "load_model",
    "read_checkpoint",
    "record_classes",
    "save_model",
]

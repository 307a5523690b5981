"""What outlives a run: model files, without pickle."""

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
    "LoadedModel",
    "check_new_file",
    "check_storable",
    "inspect_model",
    "is_model_file",
    "load_model",
    "save_model",
]

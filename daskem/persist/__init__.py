"""What outlives a run: model files, without pickle."""

from daskem.persist.model_file import LoadedModel, inspect_model, load_model, save_model

__all__ = ["LoadedModel", "inspect_model", "load_model", "save_model"]

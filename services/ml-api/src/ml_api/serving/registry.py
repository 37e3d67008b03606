"""The served models: the trading model of /predict, and others for the Open Inference Protocol."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ml_api import Unusable
from ml_api.serving.swap import SwapRefused
from ml_api.settings import PREFIX, Settings
from ml_api.trading.indicators import FEATURES
from ml_api.trading.types import CLASSES
from predictor import Model, ModelSlot, PredictorError, manifest_path, sha256_of

__all__ = ["BUNDLED_MODEL", "ModelRegistry", "ModelUnusable", "check_trading_model", "load_models"]

_log = logging.getLogger("ml_api")

BUNDLED_MODEL = Path(str(files("ml_api"))) / "models" / "btc-eth.txt"
"""The model in the package, which /predict uses by default."""


class ModelUnusable(SwapRefused, Unusable):
    """A model cannot be served; the message says which and why."""


@dataclass(frozen=True, slots=True)
class ModelRegistry:
    """
    The slots of all models.

    Attributes:
        trading: The slot of the trading model; None if fixed rules decide, or there is no /predict.
        by_name: The slots of all models, with the trading model, by the name in the manifest.
    """

    trading: ModelSlot | None
    by_name: Mapping[str, ModelSlot]

    @property
    def described(self) -> str:
        """All models with their versions, as text."""
        return ", ".join(f"{name} {slot.current.info.version}" for name, slot in self.by_name.items())

    @property
    def version(self) -> str:
        """The version of the only model, or of each with its name."""
        slots = list(self.by_name.values())
        return slots[0].current.info.version if len(slots) == 1 else self.described

    @property
    def default(self) -> str | None:
        """The name of the trading model, or of the only model; None if there are several."""
        if self.trading is not None:
            return self.trading.current.info.name
        return next(iter(self.by_name)) if len(self.by_name) == 1 else None

    def check(self, name: str, model: Model) -> None:
        """
        Check that *model* may be put into the slot *name*.

        Raises:
            ModelUnusable: It is the slot of the trading model, and *model* has other features or classes.
        """
        if self.trading is not None and self.trading is self.by_name[name]:
            check_trading_model(model)


def load_models(settings: Settings) -> ModelRegistry:
    """
    Load and check every model that *settings* name.

    Raises:
        ModelUnusable: A model is missing, was changed, cannot be used, or has the name of another one.
    """
    trading = _load_trading(settings) if settings.only_models is None else None
    by_name = {trading.current.info.name: trading} if trading is not None else {}
    alone = _files(settings.only_models) if settings.only_models is not None else []
    beside = sorted(settings.models_dir.glob("*.txt")) if settings.models_dir is not None else []
    for path in [*alone, *beside]:
        model = _load(path, needs_manifest=path in beside)
        name = model.info.name if model.manifest is not None else path.stem
        if name in by_name:
            raise ModelUnusable(
                f"the model {path} is not served: another model is also called {name}; rename one in its manifest"
            )
        by_name[name] = ModelSlot(model)
    return ModelRegistry(trading, by_name)


def check_trading_model(model: Model) -> None:
    """
    Check that *model* has the features and classes of /predict.

    Raises:
        ModelUnusable: The features or classes differ, or are in another order.
    """
    # The order matters, too: SELL must not be read as BUY.
    if (model.info.features, model.info.classes) != (FEATURES, CLASSES):
        raise ModelUnusable(
            f"the model {model.info.name} is not served: POST /predict needs the features {', '.join(FEATURES)} "
            f"and the classes {', '.join(CLASSES)}, in this order"
        )


def _load_trading(settings: Settings) -> ModelSlot | None:
    path = settings.model_path or BUNDLED_MODEL
    if not path.is_file():
        if settings.rule_fallback:
            return None
        raise ModelUnusable(
            f"there is no model at {path}; set {PREFIX}MODEL_PATH to a model, or set {PREFIX}RULE_FALLBACK=true"
        )
    model = _load(path)
    check_trading_model(model)
    return ModelSlot(model)


def _files(path: Path) -> list[Path]:
    """Return *path* if it is a model file, or all model files of a folder."""
    if not path.is_dir():
        return [path]
    if not (files := sorted(path.glob("*.txt"))):
        raise ModelUnusable(f"the folder {path} holds no model; models are files named *.txt")
    return files


def _load(path: Path, *, needs_manifest: bool = True) -> Model:
    try:
        if needs_manifest or manifest_path(path).exists():
            return Model.load(path)
        _log.warning(
            "%s has no manifest, so its SHA-256, labels and golden rows are not checked; predictor.save writes one",
            path.name,
        )
        return Model.load(path, sha256=sha256_of(path.read_bytes()))
    except (PredictorError, OSError) as error:
        raise ModelUnusable(f"the model {path} is not served: {error}") from error

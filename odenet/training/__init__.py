"""Training and evaluating classifiers, on Lightning Fabric."""

from odenet.training.evaluation import Evaluation, evaluate
from odenet.training.history import EpochRecord, History, Progress
from odenet.training.loop import fit
from odenet.training.memory import SavedTensorMeter, saved_bytes
from odenet.training.schedules import constant, cosine, multistep, one_cycle
from odenet.training.settings import Settings

__all__ = [
    "EpochRecord",
    "Evaluation",
    "History",
    "Progress",
    "SavedTensorMeter",
    "Settings",
    "constant",
    "cosine",
    "evaluate",
    "fit",
    "multistep",
    "one_cycle",
    "saved_bytes",
]

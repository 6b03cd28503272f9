"""Training and evaluating networks, on Lightning Fabric."""

from odenet.training.continuation import Continuation, Switch, chain, depth_doubling, to_adaptive, tolerance_annealing
from odenet.training.evaluation import Evaluation, evaluate
from odenet.training.history import EpochRecord, History, Progress
from odenet.training.loop import fit
from odenet.training.memory import SavedTensorMeter, saved_bytes
from odenet.training.monitor import OdeMonitor
from odenet.training.objective import Classification, Objective, Regression, objective_of
from odenet.training.schedules import constant, cosine, multistep, one_cycle
from odenet.training.settings import Settings

__all__ = [
    "Classification",
    "Continuation",
    "EpochRecord",
    "Evaluation",
    "History",
    "Objective",
    "OdeMonitor",
    "Progress",
    "Regression",
    "SavedTensorMeter",
    "Settings",
    "Switch",
    "chain",
    "constant",
    "cosine",
    "depth_doubling",
    "evaluate",
    "fit",
    "multistep",
    "objective_of",
    "one_cycle",
    "saved_bytes",
    "to_adaptive",
    "tolerance_annealing",
]

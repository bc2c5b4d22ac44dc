"""Optimizers by config, and the learning rate's schedule."""

from clip_train.optimizers.adafactor import AdafactorConfig
from clip_train.optimizers.adamw import AdamWConfig
from clip_train.optimizers.distributed_shampoo import DistributedShampooConfig
from clip_train.optimizers.lion import LionConfig
from clip_train.optimizers.make import Optimizer, make_optimizer
from clip_train.optimizers.muon import MuonConfig
from clip_train.optimizers.options import OptimizerConfig, ParameterOptions, ParametersConfig
from clip_train.optimizers.schedule import Length, ScheduleConfig, make_schedule, to_samples, to_steps

__all__ = [
    "AdafactorConfig",
    "AdamWConfig",
    "DistributedShampooConfig",
    "Length",
    "LionConfig",
    "MuonConfig",
    "Optimizer",
    "OptimizerConfig",
    "ParameterOptions",
    "ParametersConfig",
    "ScheduleConfig",
    "make_optimizer",
    "make_schedule",
    "to_samples",
    "to_steps",
]

"""Optimizers by config, and the learning rate's schedule."""

from clip_train.optimizers.adamw import AdamWConfig, make_optimizer
from clip_train.optimizers.schedule import Length, ScheduleConfig, make_schedule, to_samples, to_steps

__all__ = ["AdamWConfig", "Length", "ScheduleConfig", "make_optimizer", "make_schedule", "to_samples", "to_steps"]

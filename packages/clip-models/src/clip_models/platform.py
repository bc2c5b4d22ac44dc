"""Where a program will run, known while it is traced."""

from __future__ import annotations

import jax


def platform() -> str:
    """Says on what: the devices of the mesh in use, else jax's default ones; ``cpu``, ``gpu``, ``tpu``."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform

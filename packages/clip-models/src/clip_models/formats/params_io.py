"""Between files of tensors and parameter trees: each array is made, converted and placed once."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_models.clip import init
from clip_models.config import ClipConfig
from clip_models.formats.source import Shape, Source, Sources
from clip_models.formats.stored import replacing
from clip_models.formats.tensor_file import DTYPES, TensorFiles
from clip_models.params import Params, check_shapes, flatten, shapes, unflatten

_BAND = 128  # columns


def read_params(
    files: TensorFiles,
    sources: Sources,
    config: ClipConfig,
    *,
    dtype: str,
    shardings: Any,
    where: str,
) -> Params:
    """Reads the parameters of a config.

    Args:
        files: that hold them.
        sources: of every array.
        config: of the model.
        dtype: of the parameters.
        shardings: a sharding for all, or a tree of one for each. None: the default device.
        where: what errors call the files.

    Returns:
        The parameters.

    Raises:
        ValueError: the format has no place for arrays that the config calls for; or naming every tensor that is
            missing, extra or misshapen, or no floating-point numbers.
    """
    wanted = expected_shapes(config)
    if sources.keys() != wanted.keys():
        foreign, absent = sorted(wanted.keys() - sources.keys()), sorted(sources.keys() - wanted.keys())
        raise ValueError(
            f"the config must be one that the format of {where} can hold. "
            + f"The format has no {', '.join(foreign)}. " * bool(foreign)
            + f"The config has no {', '.join(absent)}, which the format always has. " * bool(absent)
            + "Give the config of these weights, and change the model then (clip_models.surgery)."
        )
    expected: dict[str, Shape] = {}
    for ours, source in sources.items():
        theirs = source.their_shape(wanted[ours])
        for name in source.names(wanted[ours]):
            # Single numbers come as [] or [1], by the age of the file.
            is_number = wanted[ours] == () and name in files and files[name].shape in ((), (1,))
            expected[name] = files[name].shape if is_number else theirs
    check_shapes(expected, files.shapes, source=where)
    if counts := [name for name in expected if not jnp.issubdtype(files[name].dtype, jnp.floating)]:
        listed = ", ".join(f"{name} {files[name].dtype}" for name in counts)
        raise ValueError(f"parameters must be floating-point numbers; {where} has {listed}.")
    placements = place_all(shardings, wanted)

    def read(ours: str) -> jax.Array:
        shape = wanted[ours]
        return _place(shape, placements[ours], lambda index: _read(files, sources[ours], shape, index, dtype))

    # NumPy lets other threads run while it copies and transposes, which is what takes the time here.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return unflatten(dict(zip(wanted, pool.map(read, wanted), strict=True)))


def write_params(
    path: Path,
    sources: Sources,
    config: ClipConfig,
    params: Mapping[str, Any],
    *,
    dtype: str | None,
    metadata: Mapping[str, str],
) -> None:
    """Writes parameters as a safetensors file, array by array; the file is there when it is whole.

    Args:
        path: of the file.
        sources: of every array that is to be written.
        config: of the model.
        params: its arrays, all of them.
        dtype: of the tensors. None: that of each array.
        metadata: of the file.

    Raises:
        ValueError: the arrays are not those of the config.
    """
    check_params(config, params)
    flat = flatten(params)
    tensors: dict[str, tuple[np.dtype, Shape]] = {}
    for ours, source in sources.items():
        kind = np.dtype(dtype or flat[ours].dtype)
        tensors.update(dict.fromkeys(source.names(flat[ours].shape), (kind, source.their_shape(flat[ours].shape))))
    # The order of safetensors' own library: the widest elements first, then by name.
    codes = {code: name for name, code in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name)):
        kind, shape = tensors[name]
        begin, end = end, end + int(np.prod(shape)) * kind.itemsize
        header[name] = {"dtype": codes[kind], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for ours, source in sources.items():
            array = np.asarray(jax.device_get(flat[ours]))
            for layer, name in enumerate(source.names(array.shape)):
                kind = tensors[name][0]
                theirs = source.to_theirs(array[layer] if source.is_stacked else array).astype(kind)
                part = source.part[0] * theirs.nbytes if source.part is not None else 0
                file.seek(8 + len(text) + header[name]["data_offsets"][0] + part)
                file.write(np.ascontiguousarray(theirs).reshape(-1).view(np.uint8).data)


def check_params(config: ClipConfig, params: Mapping[str, Any]) -> None:
    """Refuses arrays that are not those of a config, naming every missing, extra and misshapen one."""
    check_shapes(expected_shapes(config), shapes(params), source="params")


def expected_shapes(config: ClipConfig) -> dict[str, Shape]:
    """Returns the shape of every array of a config, by flat name."""
    return shapes(jax.eval_shape(lambda: init(config, jax.random.key(0))))


def place_all(shardings: Any, wanted: Mapping[str, Shape]) -> Mapping[str, jax.sharding.Sharding | None]:
    """Returns the sharding of every array by flat name, of one for all, a tree of one for each, or None."""
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        return dict.fromkeys(wanted, shardings)
    flat = flatten(shardings)
    missing, extra = sorted(wanted.keys() - flat.keys()), sorted(flat.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(f"shardings must have one for each parameter; missing {missing}, extra {extra}.")
    return flat


def _place(shape: Shape, sharding: jax.sharding.Sharding | None, read: Callable[[Any], np.ndarray]) -> jax.Array:
    """Makes an array out of slices: all of it, or for each device its share, read once where several share one."""
    if sharding is None:
        return jax.device_put(read(tuple(slice(None) for _ in shape)))
    slices: dict[Any, np.ndarray] = {}

    def once(index: Any) -> np.ndarray:
        key = tuple((part.start, part.stop) for part in index)
        if key not in slices:
            slices[key] = read(index)
        return slices[key]

    return jax.make_array_from_callback(shape, sharding, once)


def _read(files: TensorFiles, source: Source, shape: Shape, index: Any, dtype: str) -> np.ndarray:
    """Reads a slice of one of our arrays, of the given whole shape."""
    names = source.names(shape)
    inner = index[1:] if source.is_stacked else index
    names = names[index[0]] if source.is_stacked else names
    array: np.ndarray | None = None
    for layer, name in enumerate(names):
        piece = source.to_ours(files.view(name), shape)[inner]
        if array is None:
            array = _empty((len(names), *piece.shape) if source.is_stacked else piece.shape, np.dtype(dtype))
        _copy(piece, array[layer] if source.is_stacked else array)
        files.release(name)
    if array is None:
        raise ValueError(f"{source.name} must be of at least one layer; the slice {index} has none.")
    return array


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """Copies an array; a transposed one in bands whose lines stay in the cache, at twice the speed."""
    if source.ndim == 2 and source.strides[0] < source.strides[1]:
        for start in range(0, source.shape[1], _BAND):
            target[:, start : start + _BAND] = source[:, start : start + _BAND]
    else:
        target[...] = source


def _empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Makes an array that the CPU backend takes as it is, being aligned.

    Not by NumPy: it asks for huge pages, and to find free ones can cost several times what reading the weights does.
    """
    size = max(1, int(np.prod(shape)) * dtype.itemsize)
    private: dict[str, int] = {}
    if hasattr(mmap, "MAP_PRIVATE"):  # not on Windows
        private["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    buffer = np.frombuffer(mmap.mmap(-1, size, **private), dtype, int(np.prod(shape)))
    return buffer.reshape(shape)

"""Write tests/fixtures/local_peers.npz: weights, an input and the output of the local layers of tf_keras, flax and the forum snippet.

    python -m venv .peers && .peers/bin/pip install tf_keras tensorflow-cpu flax numpy
    .peers/bin/python scripts/make_importer_fixtures.py

The peers are needed here only: the tests read the file. Inputs and outputs are stored channels first, (N, C, *size), kernels as the peer
has them.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")
TARGET = Path(__file__).parent.parent / "tests" / "fixtures" / "local_peers.npz"
RANDOM = np.random.default_rng(425)
SIZES = {1: (9,), 2: (6, 7), 3: (4, 5, 4)}

# name: dimensions, implementation, data format, kernel, stride, padding
KERAS = {
    "keras 1d, implementation 1": (1, 1, "channels_last", 3, 2, "valid"),
    "keras 1d, implementation 3, same": (1, 3, "channels_last", 4, 2, "same"),
    "keras 2d, implementation 1": (2, 1, "channels_last", (3, 2), (1, 2), "valid"),
    "keras 2d, implementation 1, channels first": (2, 1, "channels_first", (3, 2), (1, 2), "valid"),
    "keras 2d, implementation 3": (2, 3, "channels_last", (3, 2), (1, 2), "valid"),
    "keras 2d, implementation 3, same": (2, 3, "channels_last", (3, 2), (1, 2), "same"),
    "keras 2d, implementation 3, same, channels first": (2, 3, "channels_first", (2, 3), (2, 1), "same"),
}
# name: dimensions, kernel, stride, padding, dilation
FLAX = {
    "flax 1d": (1, (3,), (2,), "VALID", (1,)),
    "flax 2d": (2, (3, 2), (1, 2), "SAME", (1, 1)),
    "flax 2d, dilated": (2, (2, 3), (1, 1), ((1, 0), (2, 1)), (2, 1)),
    "flax 3d": (3, (2, 2, 2), (1, 2, 1), "VALID", (1, 1, 1)),
}


Arrays = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def keras_case(d: int, implementation: int, data_format: str, kernel: Any, stride: Any, padding: str) -> Arrays:
    import tf_keras

    first = data_format == "channels_first"
    layer_type = getattr(tf_keras.layers, f"LocallyConnected{d}D")
    layer = layer_type(3, kernel, strides=stride, padding=padding, implementation=implementation, data_format=data_format)
    x = normal(2, 2, *SIZES[d])
    seen = x if first else np.moveaxis(x, 1, -1)
    layer(seen)
    layer.set_weights([normal(*w.shape) for w in layer.get_weights()])
    y = np.asarray(layer(seen))
    kernel_array, bias = layer.get_weights()
    return {"x": x, "y": y if first else np.moveaxis(y, -1, 1), "kernel": kernel_array, "bias": bias}


def flax_case(d: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Arrays:
    import flax.linen
    import jax

    layer = flax.linen.ConvLocal(3, kernel, strides=stride, padding=padding, kernel_dilation=dilation)
    x = normal(2, 2, *SIZES[d])
    seen = np.moveaxis(x, 1, -1)
    params = jax.tree.map(lambda leaf: normal(*leaf.shape), layer.init(jax.random.key(0), seen))
    y = np.asarray(layer.apply(params, seen))
    return {"x": x, "y": np.moveaxis(y, -1, 1), "kernel": params["params"]["kernel"], "bias": params["params"]["bias"]}


def forum_case() -> Arrays:
    """discuss.pytorch.org/t/locally-connected-layers/26979: weight (1, O, C, I, J, k*k), one window per position, summed over C and k*k."""
    x, kernel, bias = normal(2, 2, 6, 7), normal(1, 3, 2, 2, 3, 9), normal(1, 3, 2, 3)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].reshape(2, 2, 2, 3, 9)
    return {"x": x, "y": (windows[:, None] * kernel).sum((2, 5)) + bias, "kernel": kernel, "bias": bias}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    arrays = {"forum": forum_case()}
    arrays |= {name: keras_case(*case) for name, case in KERAS.items()}
    arrays |= {name: flax_case(*case) for name, case in FLAX.items()}
    TARGET.parent.mkdir(exist_ok=True)
    parts: Any = {f"{name}/{part}": np.asarray(array) for name, case in arrays.items() for part, array in case.items()}
    np.savez_compressed(TARGET, **parts)
    print(f"{TARGET.name}: {len(arrays)} cases, {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()

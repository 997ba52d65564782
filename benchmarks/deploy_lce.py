"""Times larq-compute-engine, in an environment that has it and larq; `deploy.py --lce` reads its one JSON line.

The networks are those of `frostbit.models`, in larq's layers, with fresh weights.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any

os.environ.update(TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")

import larq
import larq_compute_engine as lce
import numpy as np
import tensorflow as tf

keras = tf.keras
SIGNS = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "kernel_constraint": "weight_clip"}
Model = Any


def binarynet(width: int = 128) -> Model:
    """Return BinaryNet for 32x32 images."""
    x = image = keras.Input((32, 32, 3))
    for index, factor in enumerate((1, 1, 2, 2, 4, 4)):
        first = index == 0
        signs = {**SIGNS, "input_quantizer": None} if first else SIGNS
        padding = "valid" if first else "same"
        x = larq.layers.QuantConv2D(factor * width, 3, padding=padding, pad_values=1.0, use_bias=False, **signs)(x)
        if index % 2:
            x = keras.layers.MaxPool2D()(x)
        x = keras.layers.BatchNormalization(scale=False)(x)
    for features in (8 * width, 8 * width, 10):  # as convolutions: it has no binary product of its own
        x = larq.layers.QuantConv2D(features, x.shape[1], use_bias=False, **SIGNS)(x)
        x = keras.layers.BatchNormalization(scale=False)(x)
    return keras.Model(image, keras.layers.Flatten()(x))


def bireal18(width: int = 64) -> Model:
    """Return Bi-Real-18 for 224x224 images."""
    image = keras.Input((224, 224, 3))
    x = keras.layers.Conv2D(width, 7, strides=2, padding="same", use_bias=False)(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.MaxPool2D(3, strides=2, padding="same")(x)
    for stage in range(4):
        channels = width * 2**stage
        for block in range(4):
            stride = 2 if stage and not block else 1
            shortcut = x
            if stride > 1:
                shortcut = keras.layers.AvgPool2D(2, padding="same")(x)
                shortcut = keras.layers.Conv2D(channels, 1, use_bias=False)(shortcut)
                shortcut = keras.layers.BatchNormalization()(shortcut)
            x = larq.layers.QuantConv2D(
                channels, 3, strides=stride, padding="same", pad_values=1.0, use_bias=False, **SIGNS
            )(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.add([x, shortcut])
    x = keras.layers.GlobalAvgPool2D()(x)
    return keras.Model(image, keras.layers.Dense(1000)(x))


def best(interpreter: Any, x: Any, seconds: float) -> tuple[float, float]:
    """Return the shortest time of a call, and its least processor time, in milliseconds."""
    interpreter.predict(x)
    found: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        start, spent = time.perf_counter(), time.process_time()
        interpreter.predict(x)
        found.append((time.perf_counter() - start, time.process_time() - spent))
    return 1000 * min(each[0] for each in found), 1000 * min(each[1] for each in found)


def main(name: str, request: dict[str, Any]) -> None:
    """Convert, time, print."""
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    model = {"binarynet": binarynet, "bireal18": bireal18}[name]()
    flat = lce.convert_keras_model(model)
    x = np.random.default_rng(0).standard_normal((1, *model.input_shape[1:])).astype(np.float32)
    times = {n: best(Interpreter(flat, num_threads=n), x, request["seconds"]) for n in request["threads"]}
    engine = f"larq-compute-engine {version('larq-compute-engine')}"
    print(json.dumps({"engine": engine, "times": times, "bytes": len(flat)}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

"""Methods by name: each a small preset of the answers in ``binarize``, ``progression`` and, for some, other sections.

A preset only fills what a recipe, an arm or the command line leaves open. ``None`` for a section means that
the method has no such thing: a float network has no quantizer, a straight-through network no progression.
"""

from __future__ import annotations

from typing import Any

Preset = dict[str, Any]

# BinaryConnect: identity gradient, latents kept in [-1, 1]
_STE_WEIGHT: Preset = {"weight": "ste_identity", "latent_clip": 1.0}
_STE: Preset = {**_STE_WEIGHT, "input": "ste_clip"}
# a frozen entry is a sign, an unfrozen one clip; the progression's `ste` says what passes a frozen one
_MASKED: Preset = {"weight": "ste_clip", "input": "ste_clip"}
# no latent weight; a flip optimizer moves the signs themselves, Adam the real parameters
_DIRECT: Preset = {"weight": "direct", "input": "ste_clip"}
_WEIGHTS_ONLY: Preset = {"weight": "ste_clip", "input": None}
_ANNEALED: Preset = {"kind": "anneal", "start": 5.0, "end": 500.0, "tail": 0.15}
# proximal maps that grow from clip to the sign
_GROWING: Preset = {"kind": "anneal", "start": 1.0, "end": 100.0, "tail": 0.15}
# A step that starts from the quantized weight applies the map to its own result, so a small hardness adds up: what
# counts is the sum of (hardness − 1) over the run, about ten. This end suits a few thousand steps.
_CREEPING: Preset = {"kind": "anneal", "start": 1.0, "end": 1.01, "shape": "linear", "tail": 0.15}
_RELAXED: Preset = {"weight": {"name": "binary_relax", "bounded": False}, "input": "ste_clip"}

METHODS: dict[str, dict[str, Preset | None]] = {
    "float": {"binarize": None, "progression": None},
    "ste": {"binarize": _STE, "progression": None},
    "ste_clip": {"binarize": _MASKED, "progression": None},
    "ste_identity": {"binarize": {"weight": "ste_identity", "input": "ste_identity"}, "progression": None},
    "approx_sign": {"binarize": {**_STE_WEIGHT, "input": "approx_sign"}, "progression": None},
    "stompp": {"binarize": _MASKED, "progression": {"ste": None}},
    "stompp+ste": {"binarize": _MASKED, "progression": {"ste": "ste_clip"}},
    "global": {"binarize": _MASKED, "progression": {"ste": None, "order": "global"}},
    "reverse": {"binarize": _MASKED, "progression": {"ste": None, "order": "reverse"}},
    "global+ste": {"binarize": _MASKED, "progression": {"ste": "ste_clip", "order": "global"}},
    "reverse+ste": {"binarize": _MASKED, "progression": {"ste": "ste_clip", "order": "reverse"}},
    # freezing on one side, a straight-through estimator on the other
    "hybrid": {"binarize": {**_STE_WEIGHT, "input": "ste_clip"}, "progression": {"targets": ["input"]}},
    "reverse_hybrid": {"binarize": _MASKED, "progression": {"targets": ["weight"]}},
    "ste-bwn": {"binarize": {**_STE_WEIGHT, "input": None}, "progression": None},
    "stompp-bwn": {"binarize": _WEIGHTS_ONLY, "progression": {"targets": ["weight"]}},
    "stompp-bwn+ste": {
        "binarize": _WEIGHTS_ONLY,
        "progression": {"targets": ["weight"], "ste": "ste_clip"},
    },
    "bnn+": {"binarize": {"weight": "bnn+", "input": "ste_clip"}, "progression": None},
    "bnn++": {
        "binarize": {"weight": "bnn++", "input": "ste_clip"},
        "progression": _ANNEALED,
    },
    "pc": {"binarize": {**_STE, "weight": "prox_linear"}, "progression": _GROWING},
    "parq": {"binarize": {**_STE, "weight": "parq"}, "progression": _GROWING},
    "binary_relax": {"binarize": {**_STE, "weight": "binary_relax"}, "progression": _GROWING},
    "pq": {"binarize": _RELAXED, "progression": _CREEPING, "optimizer": {"step_from": "quantized"}},
    "rpc": {
        "binarize": _RELAXED,
        "progression": _CREEPING,
        "optimizer": {"grad_at": "latent", "step_from": "quantized"},
    },
    "bop": {"binarize": _DIRECT, "progression": None, "optimizer": {"name": "bop", "lr": 0.01}},
    "bop2ndorder": {"binarize": _DIRECT, "progression": None, "optimizer": {"name": "bop2ndorder", "lr": 0.01}},
    "stompp+bop2ndorder": {
        "binarize": _DIRECT,
        "progression": {"targets": ["input"], "ste": None},
        "optimizer": {"name": "bop2ndorder", "lr": 0.01},
    },
    # what docs/studies.md found best: latent weights moved by Muon, a cosine, and a float teacher
    "frostbit": {
        "binarize": _STE,
        "progression": None,
        "optimizer": {"name": "muon", "lr": 0.03, "latent_lr": 0.02},
        "schedule": {"name": "cosine"},
        "distill": {"temperature": 4.0, "weight": 0.5},
    },
    # the SignSwish pair on activations, weights flip; a slope that grows to 500 would drown the shortcuts' gradients
    "bop+bnn+": {
        "binarize": {**_DIRECT, "input": "bnn+"},
        "progression": None,
        "optimizer": {"name": "bop", "lr": 0.01},
    },
    "bop+bnn++": {
        "binarize": {**_DIRECT, "input": {"name": "bnn++", "unit_slope": True}},
        "progression": _ANNEALED,
        "optimizer": {"name": "bop", "lr": 0.01},
    },
}

"""Recipe files: YAML, what it is based on, its grid of arms, its scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostbit.errors import UsageError
from frostbit.registry import nearest
from frostbit.training.grid import Axes, read_axes, span
from frostbit.training.settings import Flat, flatten, overlay


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a recipe file.

    Args:
        path: a YAML file holding one mapping.

    Returns:
        What it says, unchecked.

    Raises:
        UsageError: no such file, not YAML, or no mapping.
    """
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"cannot read the recipe {str(path)!r}: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(
            f"{str(path)!r} is not valid YAML{where}: {getattr(error, 'problem', None) or 'unreadable'}"
        ) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{str(path)!r} must hold a mapping of settings, found {type(data).__name__}")
    return data


def read_recipe_file(path: str | Path) -> Flat:
    """Read a recipe and what it is based on.

    Args:
        path: a YAML file. Its ``base``, a path beside it, names a recipe whose settings hold where the file is silent;
            settings of a scale are merged scale by scale. Its ``grid`` is spanned into arms, see
            `frostbit.training.grid`.

    Returns:
        Flat settings.

    Raises:
        UsageError: as `read_yaml` and `flatten`; a recipe that is its own base; or a grid that spans nothing.
    """
    layers: list[Flat] = []
    files: list[Path] = []
    axes: Axes = {}
    following: Path | None = Path(path)
    while following is not None:
        if following.resolve() in files:
            raise UsageError(f"recipe {str(path)!r} is based on itself, through {str(following)!r}")
        files.append(following.resolve())
        data = read_yaml(following)
        base = data.pop("base", None)
        if base is not None and not isinstance(base, str):
            raise UsageError(f"{str(following)!r}: base must be the path of a recipe beside it, found {base!r}")
        axes = read_axes(data.pop("grid", {}), str(following)) | axes
        layers.insert(0, flatten(data, str(following)))
        following = following.parent / base if base else None
    scales: dict[str, Flat] = {}
    scale_axes: dict[str, Axes] = {}
    for layer in layers:
        for scale, settings in (layer.get("scales") or {}).items():
            settings, where = dict(settings or {}), f"scale {scale!r}"
            scale_axes.setdefault(scale, {}).update(read_axes(settings.pop("grid", {}), where, axes))
            scales[scale] = overlay(scales.get(scale, {}), flatten(settings, where))
    stated = overlay(*layers, {"scales": scales} if scales else {})
    spans = axes or any("{" in str(arm) for arm in stated.get("arms") or {})
    return span(stated, axes, scale_axes, str(path)) if spans else stated


def at_scale(stated: Flat, scale: str | None) -> Flat:
    """Bring a recipe to one of its smaller scales.

    Args:
        stated: flat settings of the recipe file, which describes the full scale.
        scale: ``None`` or ``"full"`` for the recipe as it is, else one of its ``scales``. Their settings win over the
            recipe's, those of their ``arms`` over the arm's; the name gets the scale as its ending.

    Raises:
        UsageError: no such scale, or settings for an arm that the recipe does not have.
    """
    if scale is None or scale == "full":
        return stated
    scales, arms = stated.get("scales") or {}, stated.get("arms") or {}
    if scale not in scales:
        raise UsageError(f"the recipe has no scale {scale!r}: {nearest(scale, ['full', *scales])}")
    smaller = flatten(scales[scale] or {}, f"scale {scale!r}")
    changes = smaller.pop("arms", None) or {}
    for arm in changes:
        if arm not in arms:
            raise UsageError(f"scale {scale!r} changes an arm that the recipe lacks, {arm!r}: {nearest(arm, arms)}")
    both = {
        arm: overlay(*(flatten(settings.get(arm) or {}, f"arm {arm!r}") for settings in (arms, changes)))
        for arm in arms
    }
    return overlay(stated, smaller, {"arms": both, "scale": scale, "name": f"{stated.get('name', 'run')}-{scale}"})

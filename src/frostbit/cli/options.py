"""Options that commands share: each setting by its dotted name, the usual ones by a short name too."""

from __future__ import annotations

import re
from argparse import SUPPRESS
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from frostbit.errors import UsageError
from frostbit.registry import nearest
from frostbit.training.settings import SECTIONS, SETTINGS, Flat, describe, nearest_setting

SHORT = {
    "method": "method",
    "model": "model.name",
    "data": "data.name",
    "epochs": "train.epochs",
    "batch": "train.batch",
    "seed": "seeds",
    "lr": "optimizer.lr",
    "refresh": "progression.refresh",
    "order": "progression.order",
}
NOT_OPTIONS = ("arms", "scales", "scale", "paper")


def make_parser(
    command: str, description: str, *, usage: str, settings: bool = True, without: Iterable[str] = ()
) -> Any:
    """Return a jsonargparse parser for one command.

    Args:
        command: its name.
        description: one or two sentences for ``--help``.
        usage: the words behind the command's name.
        settings: whether it takes the settings of a recipe.
        without: settings that this command does not take.

    Returns:
        The parser; add the command's own options to it, then call :func:`parse`.
    """
    from jsonargparse import ArgumentParser

    parser: Any = ArgumentParser(
        prog=f"frostbit {command}",
        usage=f"frostbit {command} {usage}",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.recipe_settings = set()
    if not settings:
        return parser
    skipped = {*NOT_OPTIONS, *without}
    shorts = {dotted: short for short, dotted in SHORT.items() if short != dotted}
    usual = parser.add_argument_group("the usual choices")
    groups = {"": parser.add_argument_group("further settings")}
    for section in SECTIONS:
        if section not in skipped and "." not in section:
            groups[section] = parser.add_argument_group(section)
    for name, setting in SETTINGS.items():
        section = name.partition(".")[0] if "." in name else ""
        if name in skipped or section in skipped:
            continue
        # short names are rewritten in parse(): jsonargparse would take `--data` for the whole group `data.*`
        short = f"[or --{shorts[name]}] " if name in shorts else ""
        group = usual if name in SHORT.values() else groups[section]
        parser.recipe_settings.add(name)
        group.add_argument(f"--{name}", type=setting.kind, default=setting.default, help=short + setting.help)
    return parser


def parse(parser: Any, argv: Sequence[str]) -> tuple[dict[str, Any], Flat]:
    """Parse the words of a command.

    Args:
        parser: from :func:`make_parser`.
        argv: the words.

    Returns:
        The command's own options with their defaults, and the recipe settings that were really given.

    Raises:
        UsageError: an unknown option, or a value of the wrong type.
    """
    from jsonargparse import ArgumentError

    words = _normalize(parser, argv)
    try:
        given = parser.parse_args(words, defaults=False)
    except ArgumentError as error:
        raise UsageError(_explain(parser, str(error))) from None
    # dict-valued settings such as model.args stay whole: only the settings' own names are looked up
    settings = {name: given[name] for name in SETTINGS if name in parser.recipe_settings and name in given}
    own = {
        action.dest: given.get(action.dest, action.default)
        for action in parser._actions
        if action.dest not in parser.recipe_settings and action.default != SUPPRESS
    }
    return own, settings


def _takes(parser: Any, flag: str) -> bool:
    return flag in parser._option_string_actions


def _normalize(parser: Any, argv: Sequence[str]) -> list[str]:
    words: list[str] = []
    for word in argv:
        if re.match(r"--?[A-Za-z]", word):
            flag, equals, value = word.partition("=")
            dotted = SHORT.get(flag.removeprefix("--"))
            if dotted in parser.recipe_settings:
                flag = f"--{dotted}"
            _check_flag(parser, flag)
            words += [flag, value] if equals else [flag]
        else:
            words.append(word)
    for index in range(1, len(words)):
        name = words[index - 1].removeprefix("--")
        setting = SETTINGS[name] if name in parser.recipe_settings else None
        text = words[index]
        # --seeds 0,1,2 instead of --seeds '[0, 1, 2]'
        if setting and _is_list(setting.kind) and text != "null" and text[:1] not in "[-":
            words[index] = f"[{text}]"
    return words


def _is_list(kind: Any) -> bool:
    options = (kind, *get_args(kind))
    return any(get_origin(option) in (list, tuple) for option in options) and str not in options


def _check_flag(parser: Any, flag: str) -> None:
    if _takes(parser, flag):
        return
    name = flag.lstrip("-")
    inside = any(name.startswith(n + ".") and get_origin(s.kind) is dict for n, s in SETTINGS.items())
    if inside and _takes(parser, "--model.args"):
        return
    known = [option.lstrip("-") for option in parser._option_string_actions if not option.endswith("+")]
    known += [short for short, dotted in SHORT.items() if dotted in parser.recipe_settings]
    tail = nearest(name, known)
    if not tail.startswith("did"):
        tail = nearest_setting(name) if _takes(parser, "--method") else tail
        tail = tail if tail.startswith("did") else f"see {parser.prog} --help"
    tail = re.sub(r"'([^']+)'", lambda m: f"'--{m[1]}'" if tail.startswith("did") else m[0], tail)
    raise UsageError(f"{parser.prog} has no option {flag!r}: {tail}")


def _explain(parser: Any, text: str) -> str:
    key = re.search(r'Parser key "([^"]+)"', text)
    value = re.search(r"(?:Got|Given) value: (.*)", text)
    if key and value:
        kinds = {a.dest: getattr(a, "_typehint", a.type) for a in parser._actions}
        kind = SETTINGS[key[1]].kind if key[1] in parser.recipe_settings else kinds.get(key[1])
        if kind is not None:
            if get_origin(kind) is Literal:
                return f"unknown {key[1]} {value[1]!r}: {nearest(value[1], map(str, get_args(kind)))}"
            return f"--{key[1]} must be {describe(kind)}, found {value[1]!r}"
    return " ".join(text.split())

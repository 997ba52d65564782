"""``frostbit evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from frostbit.cli.options import make_parser, parse
from frostbit.errors import UsageError


def run(argv: Sequence[str]) -> int:
    """Print the accuracies of a run's last checkpoint: as it is, hardened, hardened and recalibrated."""
    parser = make_parser(
        "evaluate",
        "Accuracies of a run's last checkpoint on its test split: as it is, hardened, recalibrated.",
        usage="RUN [options]",
        settings=False,
    )
    parser.add_argument("run", type=str, help="run folder, or the last.ckpt in it")
    parser.add_argument("--path", type=str | None, help="folder of the data, if it moved")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own choice")
    own, _ = parse(parser, argv)
    folder = Path(own["run"])
    if folder.is_file():
        if folder.name != "last.ckpt":
            raise UsageError(f"evaluate takes a run folder or the last.ckpt in it, found {own['run']!r}")
        folder = folder.parent

    import torch

    from frostbit.evaluation import is_hard, recalibrate_
    from frostbit.training.evaluate import score
    from frostbit.training.run import load_run, precision_context, recalibration_batches

    if own["threads"] < 0:
        raise UsageError(f"--threads must be at least 0, found {own['threads']}")
    if own["threads"]:
        torch.set_num_threads(own["threads"])
    module, built = load_run(folder, data_path=own["path"])
    if torch.cuda.is_available():
        module.cuda()
    test = module.loader(built.data.test)
    context = precision_context(built.recipe.train.precision, module.device)
    epoch = module.record.curve[-1]["epoch"] if module.record.curve else 0
    print(f"{folder}, last evaluated epoch {epoch}, {len(built.data.test)} test samples")
    print(f"  as it is                 {score(module.net, test, context=context)[1]:6.2f} %")
    if not is_hard(module.net):
        print(f"  hardened                 {score(module.net, test, hardened=True, context=context)[1]:6.2f} %")
    if built.report is not None:
        with context():
            recalibrate_(module.net, recalibration_batches(module))
        print(f"  hardened, recalibrated   {score(module.net, test, hardened=True, context=context)[1]:6.2f} %")
    return 0

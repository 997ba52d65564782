"""One-bit PARQ here and in torchao: the same weights on the same gradients. `make bench-peers`.

torchao's optimizer keeps the latents in its state and writes quantized weights into the parameters; here the
parameter is the latent and the layer quantizes. Both take the same steps of SGD with the same gradients, with levels
±mean|u| per row. What is left between them is rounding: torchao's hard weights are ``u − (u − sign(u)·v)``, so they
miss ±v by a residue of a few units in the last place of u; ours are exactly ±v.
"""

from __future__ import annotations

from importlib.metadata import version

import torch
from torch import nn

import frostbit as fb

STEPS, ROWS, COLUMNS = 200, 8, 24


def main() -> None:
    """Compare at every step and print the largest differences, in units of the weight's rounding."""
    from torchao.prototype.parq.optim import ProxPARQ, QuantOptimizer
    from torchao.prototype.parq.quant import LSBQuantizer

    generator = torch.Generator().manual_seed(0)
    start = 0.3 * torch.randn(ROWS, COLUMNS, generator=generator)
    theirs = nn.Parameter(start.clone())
    base = torch.optim.SGD([{"params": [theirs], "quant_bits": 1}], lr=0.05, momentum=0.9)
    prox = ProxPARQ(anneal_start=20, anneal_end=160)
    their_optimizer = QuantOptimizer(base, LSBQuantizer(), prox, quant_period=1, quant_per_channel=True)

    layer = fb.nn.Linear(
        COLUMNS, ROWS, bias=False, weight_quantizer="parq", input_quantizer=None, weight_scale="mean_abs"
    )
    with torch.no_grad():
        layer.weight.copy_(start)
    our_optimizer = fb.optim.ProxConnect(layer, torch.optim.SGD, lr=0.05, momentum=0.9)

    unit = torch.finfo(torch.float32).eps * float(start.abs().max())
    largest = {"latents": 0.0, "soft weights": 0.0, "hard weights": 0.0}
    for step in range(STEPS):
        gradient = 0.1 * torch.randn(ROWS, COLUMNS, generator=generator)
        theirs.grad, layer.weight.grad = gradient.clone(), gradient.clone()
        their_optimizer.step()
        our_optimizer.step()
        latent = their_optimizer.state[theirs]["latent"]
        largest["latents"] = max(largest["latents"], float((latent - layer.weight.detach()).abs().max()))
        if step < prox.anneal_start:
            continue  # torchao leaves weights as they are until then, beyond ±v too
        inverse_slope = their_optimizer.param_groups[0].get("inv_slope", 1.0)
        hard = step >= prox.anneal_end
        layer.weight_quantizer.finished = hard
        layer.weight_quantizer.hardness.fill_(1 / inverse_slope)
        ours = layer.weight_quantizer(layer.weight, layer.scale()).detach()
        kind = "hard weights" if hard else "soft weights"
        # where the line is steep, a rounding of the latent is that much larger in the weight
        slope = 1.0 if hard else 1 / inverse_slope
        largest[kind] = max(largest[kind], float((theirs.detach() - ours).abs().max()) / slope)
    print(f"torchao {version('torchao')}, {STEPS} steps, largest difference in units of {unit:.1e}:")
    for kind, difference in largest.items():
        print(f"  {kind:<13} {difference / unit:6.2f}")
        if difference > 16 * unit:
            raise SystemExit(f"{kind} differ by more than rounding")


if __name__ == "__main__":
    main()

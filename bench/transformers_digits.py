"""What times of elements do for ordinary samples: ComboStoc and SiT on the digits, over seeds of training.

    python -m bench.transformers_digits

Three trainings of one size for every seed: ComboStoc with times of elements, the same network without (`UNSYNC_NONE`),
and SiT. All are sampled in the ordinary way, by equal Euler steps with one time a sample.
"""

from __future__ import annotations

from bench.digits import Sampler, command
from samplers.planning.plan import SamplerOptions

SIZE = "--width=64 --depth=4 --num-heads=4 --batch=64 --lr=2e-3 --ema=0.01"
TRAINED = {
    "combostoc": f"combostoc --model=ComboStoc-S/2 {SIZE}",
    "combostoc-none": f"combostoc --model=ComboStoc-S/2 --combostoc-type=UNSYNC_NONE {SIZE}",
    "sit": f"sit --model=SiT-S/2 {SIZE}",
}
ROWS = {name: Sampler(name, {n: SamplerOptions(N=n) for n in (5, 10, 20, 40)}) for name in TRAINED}

main = command(TRAINED, ROWS, "Transformers on the digits", "runs/bench-transformers", 0.05)

if __name__ == "__main__":
    main()

"""train.py whose process of one rank is killed in one step of the first attempt, or after its end ("end").

torchrun then starts all again. Arguments: RANK STEP, then those of train.py.
"""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import train
import training.loop.loop

rank, step = sys.argv[1:3]
update, calls = training.loop.loop.Loop._update, []


def update_or_die(*args):
    calls.append(None)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == rank and str(len(calls)) == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(*args)


training.loop.loop.Loop._update = update_or_die
try:
    train.main(sys.argv[3:])
finally:
    if step == "end" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == rank:
        os.kill(os.getpid(), signal.SIGKILL)

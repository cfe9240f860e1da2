"""What the first example of the README takes as given: a model to train, a frame to search."""

import time
from pathlib import Path

from matplotlib import pyplot as plt


class Model:
    """A model that is always as good."""

    def score(self):
        return 0.9


def step(model):
    time.sleep(0.1)
    return 0.0412


def plot(model):
    plt.plot([1, 2])


def search(frame):
    time.sleep(0.5)
    print("trial 212 of 400, best 0.913")
    return 0.913


model, frame = Model(), []
Path("Makefile").write_text("all:\n\t@sleep 0.5; echo built\n")

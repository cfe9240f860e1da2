# %%
import random

import numpy as np

random.seed(3)
np.random.seed(3)
random.random()
# %%
[random.randint(0, 9) for _ in range(5)]
# %%
np.random.rand(2).round(4)
# %%
rng = np.random.default_rng(5)
rng.integers(0, 100, 4)
# %%
walk = [0]
for _ in range(10):
    walk.append(walk[-1] + int(rng.integers(-1, 2)))
walk
# %%
np.random.normal(size=2).round(4)
# %%
deck = list(range(10))
random.shuffle(deck)
deck
# %%
rng.shuffle(deck)
deck[:3]
# %%
own = random.Random(8)
own.sample(range(100), 3)
# %%
own.choice("abcdef")
# %%
legacy = np.random.RandomState(1)
legacy.rand()
# %%
legacy.permutation(5)
# %%
state = random.getstate()
first = random.random()
random.setstate(state)
first == random.random()
# %%
random.seed(99)
np.random.seed(99)
# %%
round(random.random(), 6), round(float(np.random.rand()), 6)
# %%
sample = np.random.choice([1, 2, 3], 5)
sample.tolist()

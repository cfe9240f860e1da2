# %%
%matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

x = np.linspace(0, 6, 50)
# %%
plt.rcParams["figure.figsize"] = (3, 2)
pd.set_option("display.precision", 2)
np.set_printoptions(precision=3)
# %%
plt.plot(x, np.sin(x))
plt.title("a wave");
# %%
fig, ax = plt.subplots()
ax.plot(x, np.cos(x));
# %%
ax.set_title("later")
fig.axes[0].get_title()
# %%
ax.plot(x, x / 6)
fig
# %%
pd.DataFrame({"a": [1.23456, 2.34567]})
# %%
np.array([1.23456789, 2.3456789])
# %%
series = pd.Series(x).rolling(5).mean()
series.plot();
# %%
def mark(axes, where):
    axes.axvline(where, color="red")
    return len(axes.lines)


mark(ax, 3)
# %%
fig, axes = plt.subplots(1, 2)
for each, function in zip(axes, (np.sin, np.cos)):
    each.plot(x, function(x))
# %%
pd.set_option("display.max_rows", 4)
pd.Series(range(10))
# %%
plt.style.use("ggplot")
plt.rcParams["axes.grid"]
# %%
plt.plot([1, 2], [2, 1])
plt.show()
# %%
import os

os.environ["NOTEBOOK_STAGE"] = "drawing"
%cd -q ..
os.path.basename(os.getcwd())
# %%
os.environ["NOTEBOOK_STAGE"]

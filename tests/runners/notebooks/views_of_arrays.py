# %%
import numpy as np

grid = np.zeros((6, 6))
rows = [grid[i] for i in range(6)]
flat = grid.ravel()
# %%
grid[2] = 1
int(flat.sum())
# %%
rows[0][:] = 5
grid[0].tolist()
# %%
corner = grid[:2, :2]
corner += 1
grid[0, 0]
# %%
flat[35] = -1
grid[5, 5]
# %%
def smooth(values, times=2):
    """In place."""
    for _ in range(times):
        values[1:-1] = (values[:-2] + values[2:]) / 2


smooth(grid)
float(grid.sum().round(4))
# %%
np.add.at(grid, ([0, 0], [1, 1]), 3)
grid[0, 1]
# %%
grid.sort(axis=1)
grid[0].round(2).tolist()
# %%
grid.resize  # a method, not called
total = grid.sum()
mask = grid > 1
mask.sum()
# %%
grid[mask] = np.nan
int(np.isnan(grid).sum())
# %%
np.nan_to_num(grid, copy=False)
int(np.isnan(grid).sum())
# %%
grid.flags.writeable = False
try:
    grid[0, 0] = 1
except ValueError as error:
    print(error)
# %%
record = np.zeros(3, dtype=[("name", "U8"), ("value", "f8")])
record["value"] = [1, 2, 3]
record
# %%
record[1] = ("middle", 9.5)
record["name"][0] = "first"
record.tolist()
# %%
masked = np.ma.masked_array([1, 2, 3, 4], mask=[0, 1, 0, 0])
masked[3] = np.ma.masked
masked.sum()
# %%
picture = np.arange(27, dtype="uint8").reshape(3, 3, 3)
red = picture[..., 0]
red //= 2
picture[2, 2].tolist()

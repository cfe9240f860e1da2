# %%
import numpy as np
import pandas as pd

rng = np.random.default_rng(7)
df = pd.DataFrame(
    {
        "Station ": rng.choice(["north", "south", "west", None], 200),
        "level": rng.normal(3.0, 0.5, 200).round(2),
        "when": pd.date_range("2024-01-01", periods=200, freq="h").astype(str),
    }
)
df.head()
# %%
df.columns = [name.strip().lower() for name in df.columns]
df.shape
# %%
df["when"] = pd.to_datetime(df["when"])
df.dtypes
# %%
df.loc[df.level > 4, "level"] = np.nan
print(int(df.level.isna().sum()), "removed")
# %%
df.dropna(subset=["station"], inplace=True)
len(df)
# %%
df["level"] = df.level.fillna(df.level.mean())
df["high"] = df.level > 3.2
df.high.sum()
# %%
df.set_index("when", inplace=True)
df.index.name
# %%
def add_hour(table):
    """Changes its argument."""
    table["hour"] = table.index.hour
    table.attrs["source"] = "stations"


add_hour(df)
# %%
daily = df.groupby(["station", df.index.date]).level.mean().unstack(0)
daily.round(2).tail(3)
# %%
by_station = {name: group for name, group in df.groupby("station")}
sorted(by_station)
# %%
north = by_station["north"]
north.loc[:, "level"] *= 10
round(float(north.level.mean()), 3)
# %%
levels = df.level.to_numpy(copy=True)
levels[levels < 2.5] = 0
int((levels == 0).sum())
# %%
df.rename(columns={"high": "is_high"}, inplace=True)
df.drop(columns="hour", inplace=True)
list(df.columns)
# %%
df.sort_values("level", ascending=False, inplace=True)
df.level.head(2).tolist()
# %%
df.at[df.index[0], "level"] = -1.0
float(df.level.min())
# %%
print(df.describe().round(2).to_string())

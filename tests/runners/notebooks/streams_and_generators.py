# %%
import csv
import io
import itertools
from pathlib import Path

folder = Path("data")
folder.mkdir(exist_ok=True)
(folder / "rows.csv").write_text("name,value\n" + "".join(f"row{i},{i * i}\n" for i in range(20)))
# %%
file = open(folder / "rows.csv")
header = next(csv.reader(file))
header
# %%
line = file.readline().strip()
line
# %%
file.close()
file.closed
# %%
def squares(limit):
    for number in range(limit):
        yield number * number


numbers = squares(10)
next(numbers)
# %%
taken = [next(numbers), next(numbers)]
taken
# %%
rest = sum(numbers)
rest
# %%
counter = itertools.count(5)
[next(counter) for _ in range(3)]
# %%
pairs = iter([("a", 1), ("b", 2), ("c", 3)])
first = next(pairs)
first
# %%
remaining = dict(pairs)
remaining
# %%
text = io.StringIO()
print("one", file=text)
text.getvalue()
# %%
text.write("two\n")
text.getvalue().split()
# %%
text.seek(0)
text.readline()
# %%
cycled = itertools.cycle("xyz")
"".join(itertools.islice(cycled, 4))
# %%
left, right = itertools.tee(range(5))
next(left), next(left), next(right)
# %%
with open(folder / "sums.csv", "w", newline="") as out:
    writer = csv.writer(out)
    writer.writerow([rest, len(taken)])
(folder / "sums.csv").read_text().strip()
# %%
def averager():
    total = count = 0
    while True:
        value = yield total / count if count else None
        total, count = total + value, count + 1


average = averager()
next(average)
# %%
average.send(10)
average.send(20)

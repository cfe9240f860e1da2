# %%
import heapq
from collections import OrderedDict, deque

names = ["ada", "bob"]
also = names
table = {"ada": {"points": [1]}, "bob": {"points": []}}
# %%
names.append("cleo")
also
# %%
also.extend(["dan", "eve"])
len(names)
# %%
for name in names:
    table.setdefault(name, {"points": []})["points"].append(len(name))
table["eve"]
# %%
points = table["ada"]["points"]
points.sort(reverse=True)
table["ada"]
# %%
points += [9]
table["ada"]["points"]
# %%
table.update(zoe={"points": points})
table["zoe"]["points"] is points
# %%
del table["bob"]
names.remove("bob")
sorted(table)
# %%
pending = deque(maxlen=3)
for name in names:
    pending.append(name)
list(pending)
# %%
pending.rotate(1)
pending[0]
# %%
heap = [5, 1, 4]
heapq.heapify(heap)
heapq.heappush(heap, 0)
heap
# %%
smallest = heapq.heappop(heap)
smallest, heap
# %%
tags = {"a", "b"}
tags |= {"c"}
tags.add("d")
sorted(tags)
# %%
tags.discard("a")
print(len(tags))
# %%
nested = [[0] * 2] * 3
nested[0][0] = 1
nested
# %%
nested[1].append(7)
nested
# %%
cache = OrderedDict(one=1, two=2)
cache.move_to_end("one")
list(cache)
# %%
loop = {"name": "loop"}
loop["self"] = loop
loop["self"]["count"] = 1
loop["count"]
# %%
buffer = bytearray(b"abc")
window = memoryview(buffer)
buffer[0] = 120
bytes(window)
# %%
buffer_two = bytearray(b"more")
buffer_two.extend(b" bytes")
buffer_two

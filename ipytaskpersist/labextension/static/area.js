// An output area takes outputs in ways of its own: it resolves carriage returns and backspaces, and adds
// a stream to the one before it.

/** An output as the area would have it. */
export function inArea({ constructor: Area, contentFactory }, output) {
  const area = new Area({ values: [output], contentFactory });
  const [found] = area.toJSON();
  area.dispose();
  return found;
}

/** Make an area's outputs these, one a step, and touch none that is as it should be. */
export function* place(area, wanted, isEqual, write = (change) => change()) {
  const present = area.toJSON();
  if (!canReplace(present, wanted)) write(() => area.clear());
  for (const [index, output] of wanted.entries()) {
    if (area.isDisposed) return;
    if (index >= area.length) write(() => area.add(output));
    else if (!isEqual(present[index], output)) write(() => area.set(index, output));
    else continue;
    yield;
  }
}

/** Whether outputs can be replaced one by one: the area adds to a stream only what follows it. */
function canReplace(present, wanted) {
  const kind = ({ output_type, name }) => (output_type === "stream" ? name : output_type);
  return present.length <= wanted.length &&
    present.every((output, index) => kind(output) === kind(wanted[index]));
}

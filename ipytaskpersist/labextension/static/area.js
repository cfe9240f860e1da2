// An output area takes outputs in ways of its own: it resolves carriage returns and backspaces, and adds
// a stream to the one before it.

/** An output as the area would have it. */
export function inArea({ constructor: Area, contentFactory }, output) {
  const area = new Area({ values: [output], contentFactory });
  const [found] = area.toJSON();
  area.dispose();
  return found;
}

/** Whether outputs can be replaced one by one: the area adds to a stream only what follows it. */
export function canReplace(present, wanted) {
  const kind = ({ output_type, name }) => (output_type === "stream" ? name : output_type);
  return present.length <= wanted.length &&
    present.every((output, index) => kind(output) === kind(wanted[index]));
}

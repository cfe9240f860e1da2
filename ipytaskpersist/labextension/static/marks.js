// Which outputs of a cell are whose. A task's card, and what a fill puts below it, carry the task's id
// in their metadata; streams and errors have no metadata, and are known by where they stand.

const KEY = "ipytaskpersist";

export function markOf(output) {
  return output.metadata?.[KEY]?.task ?? null;
}

function partOf(output) {
  return output.metadata?.[KEY]?.part;
}

/** The outputs of an area: models, which have their metadata as a file has it. */
export function outputsOf(area) {
  return Array.from({ length: area.length }, (_, index) => area.get(index));
}

/** The tasks whose cards an output area shows, in their order. */
export function cardsOf(area) {
  return [...new Set(outputsOf(area).filter((output) => partOf(output) === "card").map(markOf))];
}

/** Whether a cell is one background cell: then it shows nothing but its task. */
export function isWhole(cell) {
  return cell.sharedModel.getSource().trimStart().startsWith("%%");
}

/**
 * Where the outputs of a task stand in a cell: [from, to]; null where the cell was run since by hand.
 * `follows` is the earlier try of it whose outputs the cell has, if there is one. In a background cell,
 * what an earlier task of the cell has left belongs to it, too.
 */
export function placeOf(cell, task, follows) {
  const outputs = outputsOf(cell.outputs);
  const isOurs = (output) => markOf(output) && ([task, follows].includes(markOf(output)) || isWhole(cell));
  const first = outputs.findIndex(isOurs);
  if (first < 0) return outputs.length ? null : [0, 0];
  return [first, isWhole(cell) ? outputs.length : outputs.findLastIndex(isOurs) + 1];
}

/** Outputs of a task that end with something marked, where what follows may be the cell's own. */
export function closed(outputs, cell, task) {
  if (isWhole(cell) || markOf(outputs.at(-1) ?? {})) return outputs;
  const end = { output_type: "display_data", data: {}, metadata: { [KEY]: { task, part: "end" } } };
  return [...outputs, end];
}

/** The task whose outputs a person has cleared from a cell, or run the cell over. */
export function clearedOf(cell) {
  return cell.getMetadata(KEY)?.cleared ?? null;
}

export function setCleared(cell, task) {
  if (clearedOf(cell) === task) return;
  if (task) cell.setMetadata(KEY, { ...cell.getMetadata(KEY), cleared: task });
  else cell.deleteMetadata(KEY);
}

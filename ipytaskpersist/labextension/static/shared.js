// A document that pages share. What another page has changed in a cell's outputs JupyterLab adds at the
// end of them, wherever it stands in the document, and a text goes to the last output, whichever it is
// of. A card that is replaced above its outputs would so move below them. Here all gets its place.

import { canReplace, inArea } from "./area.js";

export function keepInOrder(cell, isEqual) {
  const { sharedModel, outputs: area } = cell;
  const apply = cell._onSharedModelChanged;
  if (!apply) return;
  sharedModel.changed.disconnect(apply, cell);
  sharedModel.changed.connect((sender, { outputsChange, streamOutputChange, ...others }) => {
    if (cell.isDisposed) return;
    const isOfOutputs = outputsChange || streamOutputChange;
    const place = () => placeAll(area, sharedModel.getOutputs(), isEqual);
    apply.call(cell, sender, isOfOutputs ? { ...others, outputsChange: calling(place) } : others);
  });
}

/**
 * Changes that JupyterLab would go through one by one: going through these does the work. It goes
 * through them where changes of the page are not written back to the document.
 */
function calling(work) {
  return { *[Symbol.iterator]() { work(); } };
}

function placeAll(area, outputs, isEqual) {
  const wanted = outputs.map((output) => inArea(area, output));
  const present = area.toJSON();
  if (!canReplace(present, wanted)) return area.fromJSON(wanted);
  for (const [index, output] of wanted.entries()) {
    if (index >= present.length) area.add(output);
    else if (!isEqual(present[index], output)) area.set(index, output);
  }
}

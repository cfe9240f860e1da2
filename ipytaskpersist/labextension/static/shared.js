// A document that pages share. What another page has changed in a cell's outputs JupyterLab adds at the
// end of them, wherever it stands in the document, and a text goes to the last output, whichever it is
// of. A card that is replaced above its outputs would so move below them. Here all gets its place.

import { inArea, place } from "./area.js";

export { Writer } from "./writer.js";

export function keepInOrder(cell, isEqual) {
  const { sharedModel, outputs: area } = cell;
  const apply = cell._onSharedModelChanged;
  if (!apply) return;
  sharedModel.changed.disconnect(apply, cell);
  sharedModel.changed.connect((sender, { outputsChange, streamOutputChange, ...others }) => {
    if (cell.isDisposed) return;
    if (outputsChange || streamOutputChange) others.outputsChange = changes(area, sharedModel, isEqual);
    apply.call(cell, sender, others);
  });
  // Another page may have written while this one was loading.
  apply.call(cell, sharedModel, { outputsChange: changes(area, sharedModel, isEqual) });
}

/**
 * What JupyterLab goes through, change by change, where changes of the page are not written back to the
 * document: going through these puts all outputs in their places, and brings no further change.
 */
function* changes(area, sharedModel, isEqual) {
  const wanted = sharedModel.getOutputs().map((output) => inArea(area, output));
  for (const _step of place(area, wanted, isEqual)) ;
}

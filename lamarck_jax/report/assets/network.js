// The picture of a network.

const ROW = 56;
const SEAM = 42;

/**
 * Draws a network as the paper's Figure 1.
 *
 * The child of a crossover has a seam, with the blocks of the first parent before it and
 * those of the second one behind it.
 */
function network(event) {
  const {genotype, crossover} = event;
  const cut = crossover?.cut ?? null;
  const numbers = parents(event);
  const rows = [['images'], ...genotype.map(([f, k, s]) => [
    `convolution ${k}x${k}, ${f} filters, stride ${s}`, 'batch normalisation, ReLU', s]),
    ['global average pooling'], ['dense layer, softmax']];
  const height = rows.length * ROW - 12 + (cut ? SEAM : 0);
  const picture = svg('svg', {
    class: 'network', viewBox: `0 -2 260 ${height}`, role: 'img',
    'aria-label': `network ${genotypeText(genotype)}` + (cut ? `, ${seam(crossover)}` : ''),
  });
  rows.forEach(([first, second, stride], index) => {
    const behind = cut !== null && index > cut[0];
    const y = index * ROW + (behind ? SEAM : 0);
    if (index) picture.append(svg('path', {d: `M130 ${y - 16}v14m-4 -5l4 5l4 -5`}));
    const group = svg('g', {class: second ? 'block' : 'end'},
      svg('rect', {
        x: 2, y, width: 256, height: 40, rx: 6,
        class: second ? `stride-${Math.min(stride, 2)}` : '',
      }),
      svg('text', {x: 130, y: second ? y + 17 : y + 25}, first));
    if (second) group.append(svg('text', {x: 130, y: y + 32}, second));
    if (cut && index) {
      const [kind, number] = behind ? ['second-parent', numbers[1]] : ['first-parent', numbers[0]];
      group.dataset.parent = number;
      group.append(svg('rect', {class: kind, x: 2, y, width: 8, height: 40}));
    }
    picture.append(group);
  });
  if (cut) picture.append(seamLine((cut[0] + 1) * ROW - 2, crossover, numbers));
  return picture;
}

function seamLine(y, {r2}, [first, second]) {
  const fit = r2 === null ? '' : `, R² ${r2.toFixed(2)}`;
  return svg('g', {class: 'seam'},
    svg('path', {d: `M2 ${y + 8}h256`}),
    svg('text', {x: 130, y: y + 2}, `from evaluation ${first}`),
    svg('text', {x: 130, y: y + 22}, `from evaluation ${second}${fit}`));
}

/** Where the two parents were cut, and how well one predicts the other there. */
function seam({cut, r2}) {
  return `behind block ${cut[0]} of the first and ${cut[1]} of the second parent`
    + (r2 === null ? '' : `, R² ${r2.toFixed(2)}`);
}

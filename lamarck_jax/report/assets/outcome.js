// What a search found: accuracy against size, and which classes are confused.

const MAX_CLASSES_IN_MATRIX = 30;

/** Returns the number of parameters of a network: kernels, biases, batch normalisation. */
function numParameters(genotype, channels, classes) {
  let inputs = channels;
  let count = 0;
  for (const [filters, kernel] of genotype) {
    count += kernel * kernel * inputs * filters + 3 * filters;
    inputs = filters;
  }
  return count + (inputs + 1) * classes;
}

/** Returns the evaluations that no smaller or equal network is better than. */
function paretoFront(events, sizes) {
  const order = events.map((_, index) => index)
    .filter((index) => !events[index].failure)
    .sort((a, b) => sizes[a] - sizes[b] || events[b].fitness - events[a].fitness);
  const front = [];
  for (const index of order) {
    if (!front.length || events[index].fitness > events[front.at(-1)].fitness) front.push(index);
  }
  return front;
}

/** Returns a section with a chart of accuracy against size, and what draws it. */
function sizeSection({events, environment, fitness_name: fitnessName}, onSelect) {
  const {image_shape: shape, class_names: names} = environment.dataset || {};
  const measures = {
    operations: {title: 'operations of an evaluation, forward', of: (event) => event.flops},
    ...(shape && names && {
      parameters: {title: 'parameters', of: (event) => numParameters(event.genotype, shape[2], names.length)},
    }),
  };
  let measure = measures.operations;
  const div = el('div', {class: 'chart', id: 'size-chart', role: 'img', 'aria-label': `${fitnessName} of each network against its size`});
  const make = () => {
    const x = events.map(measure.of);
    const front = paretoFront(events, x);
    return [[
      {x, y: events.map((event) => event.fitness), name: 'each evaluation', mode: 'markers', hoverinfo: 'text',
        text: events.map((event) => plain(`evaluation ${event.evaluation}: ${genotypeText(event.genotype)}, ${percent(event.fitness)}`)),
        marker: {color: css('--rejected'), size: 7}},
      {x: front.map((index) => x[index]), y: front.map((index) => events[index].fitness), name: 'Pareto front',
        mode: 'lines+markers', hoverinfo: 'skip', line: {color: css('--accent'), width: 2, shape: 'hv'}},
    ], layout({
      xaxis: {title: {text: measure.title}, type: 'log'},
      yaxis: {title: {text: fitnessName}, tickformat: '.0%'},
    })];
  };
  let draw = null;
  const choice = el('fieldset', {class: 'choice'}, el('legend', {}, 'size'), ...Object.entries(measures).map(([name, option]) => {
    const input = el('input', {type: 'radio', name: 'size', value: name, onchange: () => {
      measure = option;
      draw();
    }});
    input.checked = option === measure;
    return el('label', {}, input, ` ${name}`);
  }));
  return [section('Accuracy and size', choice, div), () => {
    draw = chart(div, make);
    div.on('plotly_click', ({points}) => points[0].curveNumber === 0 && onSelect(points[0].pointIndex));
  }];
}

/** Returns the sections on the confusion of classes on the test set, if it is known. */
function confusionSections({test_confusion: counts, class_names: names}) {
  if (!counts || counts.length !== names.length || counts.some((row) => row.length !== names.length)) return [];
  const pairs = counts.flatMap((row, label) => row.map((count, predicted) => ({label, predicted, count})))
    .filter(({label, predicted, count}) => label !== predicted && count)
    .sort((a, b) => b.count - a.count).slice(0, 10);
  const worst = el('p', {}, pairs.length ? 'Most frequent: ' : 'No class was taken for another.',
    pairs.map(({label, predicted, count}) => `${names[label]} taken for ${names[predicted]} (${count})`).join(', '));
  if (names.length > MAX_CLASSES_IN_MATRIX) return [section('Confusion', worst)];
  const totals = counts.map((row) => Math.max(1, row.reduce((sum, count) => sum + count, 0)));
  const head = (name) => el('th', {scope: 'col'}, name);
  return [section('Confusion', worst, el('div', {class: 'scroll'}, el('table', {id: 'confusion-table'},
    el('thead', {}, el('tr', {}, head('class, predicted as'), ...names.map(head))),
    el('tbody', {}, ...counts.map((row, label) => el('tr', {},
      el('th', {scope: 'row'}, names[label]),
      ...row.map((count, predicted) => el('td', {class: `number ${label === predicted ? 'right' : ''}`,
        style: `--share: ${Math.round((100 * count) / totals[label])}%`}, `${count}`))))))))];
}

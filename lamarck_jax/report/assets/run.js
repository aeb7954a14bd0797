// The page of a search.

function elapsed(events) {
  let sum = 0;
  return events.map((event) => (sum += event.seconds.total || 0));
}

class Search {
  constructor(data, root) {
    this.data = data;
    this.root = root;
    this.sort = {column: 'evaluation', down: false};
    this.page = 0;
    this.axis = 'epochs_used';
    this.selected = data.events.length ? bestEvent(data.events) : null;
    this.population = data.events.some((event) => event.generation !== undefined);
  }

  show() {
    const {data} = this;
    charts.length = 0;
    document.getElementById('title').textContent = data.title;
    document.getElementById('subtitle').textContent = this.subtitle();
    if (!data.events.length) {
      this.root.replaceChildren(el('p', {}, 'No evaluation has been recorded yet.'));
      return;
    }
    this.details = el('aside', {class: 'details', 'aria-live': 'polite', 'aria-label': 'chosen evaluation'});
    this.tree = el('div', {class: 'tree', tabindex: '-1'});
    this.table = el('div');
    const progress = el('div', {class: 'chart', id: 'progress-chart'});
    const time = el('div', {class: 'chart low', id: 'time-chart'});
    const [sizes, drawSizes] = sizeSection(data, (index) => this.select(index));
    this.root.replaceChildren(
      this.summary(),
      section('Accuracy', this.axisChoice(), progress),
      section('Family tree', this.legend(), el('div', {class: 'tree-and-details'}, this.tree, this.details)),
      sizes,
      section('Evaluations', this.table),
      section('Where the time went', time),
      ...this.checkpoints(),
      section('Configuration and machine', el('div', {class: 'two'},
        el('pre', {tabindex: '0', 'aria-label': 'configuration'}, flat(data.config).join('\n')),
        el('pre', {tabindex: '0', 'aria-label': 'data and machine'}, flat(data.environment).join('\n') || 'not recorded'))),
    );
    drawSizes();
    this.drawProgress = chart(progress, () => this.progress());
    chart(time, () => this.time());
    progress.on('plotly_click', ({points}) => this.select(points[0].pointIndex));
    this.drawTree();
    this.drawTable();
    this.select(this.selected, false);
  }

  subtitle() {
    const {config, events, result} = this.data;
    const used = events.length ? events.at(-1).epochs_used : 0;
    return `${config.dataset.name}, ${config.setting}, seed ${config.seed}: ` + (result
      ? `finished after ${events.length} evaluations`
      : `${used} of ${config.budget_epochs} epochs so far`);
  }

  summary() {
    const {events, result, fitness_name: fitnessName, is_balanced: isBalanced} = this.data;
    const best = events[bestEvent(events)];
    const last = result && result.checkpoints.at(-1);
    // A network that is the best at two budgets is completed once.
    const completed = new Map(result ? result.checkpoints.map((entry) => [entry.evaluation, entry.seconds || 0]) : []);
    const completion = [...completed.values()].reduce((sum, seconds) => sum + seconds, 0);
    const selected = hasSelection(events);  // With parsimony it need not be the best.
    return tiles([
      [selected ? `${fitnessName} of the selected network` : `best ${fitnessName}`, percent(best.fitness)],
      ...(last ? [['test accuracy after completion', percent(last.test_accuracy)]] : []),
      ...(last && isBalanced ? [['balanced test accuracy', percent(last.test_balanced_accuracy ?? null)]] : []),
      ['evaluations', `${events.length}`],
      ['accepted', `${events.filter((event) => event.accepted).length}`],
      ['time of the search', duration(elapsed(events).at(-1))],
      ...(completion ? [['time of completion', duration(completion)]] : []),
      [selected ? 'selected network' : 'best network', genotypeText(best.genotype), true],
    ]);
  }

  axisChoice() {
    const choices = [['epochs_used', 'training epochs'], ['time', 'wall-clock time']];
    if (this.population) choices.push(['generation', 'generation']);
    return el('fieldset', {class: 'choice'}, el('legend', {}, 'against'), ...choices.map(([value, text]) => {
      const input = el('input', {type: 'radio', name: 'axis', value, onchange: () => {
        this.axis = value;
        this.drawProgress();
      }});
      input.checked = value === this.axis;
      return el('label', {}, input, ` ${text}`);
    }));
  }

  progress() {
    const {events} = this.data;
    const title = {time: 'time, minutes', epochs_used: 'training epochs used'}[this.axis] || this.axis;
    const x = this.axis === 'time' ? elapsed(events).map((s) => s / 60) : events.map((event) => event[this.axis]);
    const text = events.map((event) => description(event).map(plain).join('<br>'));
    const color = events.map((event) => css(colorOf(event)));
    return [[
      {x, y: events.map((event) => event.fitness), text, name: 'each evaluation', mode: 'markers',
        hoverinfo: 'text',
        marker: {color, size: 7, symbol: events.map((event) => (event.accepted ? 'circle' : 'circle-open'))}},
      {x, y: events.map((event) => event.best_fitness), name: hasSelection(events) ? 'selected so far' : 'best so far', mode: 'lines', hoverinfo: 'skip',
        line: {color: css('--accent'), width: 2, shape: 'hv'}},
    ], layout({
      xaxis: {title: {text: title}},
      yaxis: {title: {text: this.data.fitness_name}, tickformat: '.0%'},
    })];
  }

  time() {
    const {events} = this.data;
    const phases = [...new Set(events.flatMap((event) => Object.keys(event.seconds)))].filter((name) => name !== 'total');
    const palette = ['#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#F0E442'];
    const sums = phases.map((phase) => events.reduce((sum, event) => sum + (event.seconds[phase] || 0), 0));
    return [phases.map((phase, index) => ({
      x: [sums[index]], y: [''], name: plain(phase), type: 'bar', orientation: 'h',
      marker: {color: palette[index % palette.length], pattern: {shape: ['', '/', '.', 'x', '-', '+', '|'][index % 7], fillmode: 'overlay', fgcolor: '#ffffff', fgopacity: 0.6, size: 6}},
      hovertemplate: `${plain(phase)}: ${duration(sums[index])}<extra></extra>`,
    })), layout({barmode: 'stack', xaxis: {title: {text: 'seconds of the search'}}, legend: {orientation: 'h', y: 1.3, traceorder: 'normal'}})];
  }

  legend() {
    const mark = (kind, text) => el('span', {},
      svg('svg', {width: 14, height: 14, 'aria-hidden': 'true'}, svg('circle', {cx: 7, cy: 7, r: 5, class: `node ${kind}`})), ` ${text}  `);
    return el('p', {class: 'legend'}, mark('accepted', 'accepted'), mark('', 'rejected'), mark('niche', 'in a niche'),
      mark('failed', 'failed'), el('br', {}),
      this.population ? 'Dashed lines separate the generations; the child of a crossover has lines to both parents. ' : '', `Height is ${this.data.fitness_name}. Click, or use the arrow keys: left and right step through the evaluations, up goes to the parent. “Before training” is that of a child right after inheritance.`);
  }

  drawTree() {
    const {events} = this.data;
    const height = innerWidth < 700 ? 320 : 480;
    const pad = {left: 58, right: 16, top: 12, bottom: 28};
    const available = Math.max(300, this.tree.clientWidth || 700) - pad.left - pad.right;
    const step = Math.max(events.length > 400 ? 7 : 14, available / Math.max(1, events.length - 1));
    const width = pad.left + pad.right + step * Math.max(1, events.length - 1);
    const values = events.filter((event) => !event.failure).map((event) => event.fitness);
    const low = Math.min(...values, 1);
    const high = Math.max(...values, low + 0.01);
    this.x = (event) => pad.left + step * event.evaluation;
    const y = (event) => (event.failure ? height - pad.bottom
      : pad.top + (height - pad.top - pad.bottom) * (1 - (event.fitness - low) / (high - low)));
    const edges = svg('g', {'aria-hidden': 'true'});
    const nodes = svg('g');
    const grid = svg('g', {'aria-hidden': 'true'});
    for (let i = 0; i <= 4; i++) {
      const value = low + ((high - low) * i) / 4;
      const at = pad.top + (height - pad.top - pad.bottom) * (1 - i / 4);
      grid.append(svg('line', {class: 'grid', x1: pad.left, x2: width, y1: at, y2: at}),
        svg('text', {x: 4, y: at + 4}, percent(value)));
    }
    const every = Math.max(1, Math.ceil(60 / step));
    for (let i = 0; i < events.length; i += every) {
      grid.append(svg('text', {x: this.x(events[i]) - 6, y: height - 6}, `${i}`));
    }
    let labelled = -Infinity;
    events.forEach((event, index) => {
      if (!index || event.generation === events[index - 1].generation) return;
      const at = this.x(event) - step / 2;
      grid.append(svg('line', {class: 'generation', x1: at, x2: at, y1: pad.top, y2: height - pad.bottom}));
      if (at - labelled < 30) return;
      labelled = at;
      grid.append(svg('text', {class: 'generation', x: at + 2, y: pad.top - 2}, `g${event.generation}`));
    });
    this.nodes = events.map((event) => {
      for (const parent of parents(event).map((number) => events[number])) {
        const [x1, y1, x2, y2] = [this.x(parent), y(parent), this.x(event), y(event)];
        const middle = (x1 + x2) / 2;
        edges.append(svg('path', {
          class: `edge ${event.accepted ? 'accepted' : ''}`,
          d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`,
        }));
      }
      const kinds = [event.accepted && 'accepted', event.niche !== null && 'niche', event.failure && 'failed'];
      const node = svg('circle', {
        class: ['node', ...kinds.filter(Boolean)].join(' '), cx: this.x(event), cy: y(event), r: 5,
        role: 'button', tabindex: '-1', 'data-evaluation': event.evaluation, 'aria-label': description(event).join(', '),
      }, svg('title', {}, description(event).join('\n')));
      nodes.append(node);
      return node;
    });
    const picture = svg('svg', {
      width, height, role: 'group', 'aria-label': `family tree of ${events.length} evaluations`,
      onclick: ({target}) => {
        const node = target.closest('.node');
        if (node) this.select(Number(node.dataset.evaluation));
      },
      onkeydown: (press) => this.key(press),
    }, grid, edges, nodes);
    this.tree.replaceChildren(picture);
  }

  key(press) {
    const {events} = this.data;
    const moves = {
      ArrowRight: Math.min(events.length - 1, this.selected + 1),
      ArrowLeft: Math.max(0, this.selected - 1),
      ArrowUp: events[this.selected].parent ?? this.selected,
      Home: 0,
      End: events.length - 1,
    };
    if (press.key in moves) {
      press.preventDefault();
      this.select(moves[press.key]);
      this.nodes[this.selected].focus();
    }
  }

  /** Shows an evaluation in the details; `chosen` is false for the one shown at first. */
  select(evaluation, chosen = true) {
    const {events} = this.data;
    this.chosen = this.chosen || chosen;
    const event = events[evaluation];
    for (const node of this.tree.querySelectorAll('.node.selected')) {
      node.classList.remove('selected');
      node.setAttribute('tabindex', '-1');
    }
    this.selected = evaluation;
    const node = this.nodes[evaluation];
    node.classList.add('selected');
    node.setAttribute('tabindex', '0');
    if (chosen) {
      const at = this.x(event);
      const {scrollLeft, clientWidth} = this.tree;
      if (at < scrollLeft + 20 || at > scrollLeft + clientWidth - 20) {
        this.tree.scrollLeft = at - clientWidth / 2;
      }
    }
    const entries = [
      ['network', genotypeText(event.genotype)],
      ...(event.generation === undefined ? [] : [['generation', event.generation]]),
      ...(parents(event).length ? parents(event) : [null]).map((number) => ['parent', number === null ? 'none'
        : el('button', {class: 'plain', onclick: () => this.select(number)}, `evaluation ${number}`)]),
      ['mutation', event.mutation.map((name) => name.replaceAll('_', ' ')).join(', ') || '–'],
      ...(event.crossover?.cut ? [['seam', seam(event.crossover)]] : []),
      [this.data.fitness_name, percent(event.fitness)],
      ['before training', percent(event.fitness_at_birth ?? null)],
      ['outcome', event.failure ? `failed: ${event.failure}` : event.accepted ? 'accepted' : 'rejected'],
      ...(event.niche === null ? [] : [['niche', `opened from evaluation ${event.niche}`]]),
      ['took', duration(event.seconds.total || 0)],
    ];
    this.details.replaceChildren(el('h3', {}, `Evaluation ${evaluation}`),
      el('dl', {}, ...entries.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)])),
      network(event));
    for (const row of this.table.querySelectorAll('tbody tr')) {
      row.classList.toggle('selected', Number(row.dataset.evaluation) === evaluation);
    }
  }

  columns() {
    return [
      ['evaluation', 'evaluation', (event) => event.evaluation, 'number'],
      ['network', 'network', (event) => genotypeText(event.genotype), 'network-name'],
      ['mutation', 'mutation', (event) => event.mutation.join(', ').replaceAll('_', ' '), ''],
      ...(this.population ? [
        ['generation', 'generation', (event) => event.generation, 'number'],
        ['parent', 'parents', (event) => parents(event).join(', ') || null, 'number'],
      ] : [['parent', 'parent', (event) => event.parent, 'number']]),
      ['fitness', this.data.fitness_name, (event) => event.fitness, 'number', percent],
      ['before_training', 'before training', (event) => event.fitness_at_birth ?? null, 'number', percent],
      ['outcome', 'outcome', (event) => (event.failure ? 'failed' : event.accepted ? 'accepted' : 'rejected'), ''],
      ['niche', 'niche', (event) => event.niche, 'number'],
      ['seconds', 'seconds', (event) => event.seconds.total || 0, 'number', (value) => value.toFixed(1)],
    ];
  }

  drawTable() {
    const columns = this.columns();
    const [, , value] = columns.find(([name]) => name === this.sort.column);
    const direction = this.sort.down ? -1 : 1;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return direction * (typeof x === 'string' ? x.localeCompare(y) : x - y) || a.evaluation - b.evaluation;
    };
    const rows = [...this.data.events].sort(order);
    const pages = Math.ceil(rows.length / PAGE_ROWS);
    this.page = Math.min(this.page, pages - 1);
    const shown = rows.slice(this.page * PAGE_ROWS, (this.page + 1) * PAGE_ROWS);
    const head = columns.map(([name, title, , kind]) => {
      const sorted = name === this.sort.column;
      return el('th', {scope: 'col', class: kind, 'aria-sort': sorted ? (this.sort.down ? 'descending' : 'ascending') : 'none'},
        el('button', {onclick: () => {
          this.sort = {column: name, down: sorted && !this.sort.down};
          this.page = 0;
          this.drawTable();
          this.table.querySelector(`th:nth-child(${columns.findIndex(([n]) => n === name) + 1}) button`).focus();
        }}, title));
    });
    const body = shown.map((event) => el('tr', {
      class: event.evaluation === this.selected ? 'selectable selected' : 'selectable',
      'data-evaluation': event.evaluation, onclick: () => this.select(event.evaluation),
    }, ...columns.map(([, , get, kind, format]) => {
      const cell = get(event);
      return el('td', {class: kind}, format ? format(cell) : cell === null ? '–' : `${cell}`);
    })));
    const turn = (by, text, disabled) => {
      const button = el('button', {class: 'plain', onclick: () => {
        this.page += by;
        this.drawTable();
      }}, text);
      button.disabled = disabled;
      return button;
    };
    this.table.replaceChildren(
      el('div', {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'table of evaluations'}, el('table', {id: 'evaluations-table'},
        el('thead', {}, el('tr', {}, ...head)), el('tbody', {}, ...body))),
      ...(pages > 1 ? [el('div', {class: 'pager'}, turn(-1, 'back', this.page === 0),
        `page ${this.page + 1} of ${pages}`, turn(1, 'next', this.page === pages - 1))] : []));
  }

  checkpoints() {
    const {result, fitness_name: fitnessName, is_balanced: isBalanced} = this.data;
    if (!result || !result.checkpoints.length) return [];
    const head = ['search epochs', 'network', fitnessName, isBalanced ? 'validation accuracy after completion' : 'after completion', 'test accuracy'];
    const accuracies = ['fitness', 'validation_accuracy', 'test_accuracy'];
    if (isBalanced) {
      head.push('balanced test accuracy');
      accuracies.push('test_balanced_accuracy');
    }
    return [section('Checkpoints', el('div', {class: 'scroll'}, el('table', {},
      el('thead', {}, el('tr', {}, ...head.map((text) => el('th', {scope: 'col'}, text)))),
      el('tbody', {}, ...result.checkpoints.map((entry) => el('tr', {},
        el('td', {class: 'number'}, `${entry.epochs}`), el('td', {}, genotypeText(entry.genotype)),
        ...accuracies.map((name) => el('td', {class: 'number'}, percent(entry[name] ?? null))))))))),
      ...this.classes(result.checkpoints.at(-1)), ...confusionSections(result.checkpoints.at(-1))];
  }

  /** Test accuracy of each class, the worst first. */
  classes(checkpoint) {
    const classes = Object.entries(checkpoint.test_accuracy_by_class || {}).sort(([, a], [, b]) => a - b);
    if (!classes.length) return [];
    const head = ['class', 'test accuracy', ''];
    return [section('Classes', el('div', {class: 'scroll'}, el('table', {id: 'classes-table'},
      el('thead', {}, el('tr', {}, ...head.map((text) => el('th', {scope: 'col'}, text)))),
      el('tbody', {}, ...classes.map(([name, accuracy]) => el('tr', {},
        el('td', {}, name), el('td', {class: 'number'}, accuracy === null ? 'no examples' : percent(accuracy)),
        el('td', {}, el('div', {class: 'bar', style: `width: ${10 * (accuracy ?? 0)}rem`}))))))))];
  }
}

/** Returns whether a network is selected that need not be the fittest: with parsimony. */
function hasSelection(events) {
  return Number.isInteger(events.at(-1).best);
}

function bestEvent(events) {
  if (hasSelection(events)) return events.at(-1).best;
  return events.reduce((best, event, index) => (event.fitness > events[best].fitness ? index : best), 0);
}

function colorOf(event) {
  if (event.failure) return '--failed';
  if (event.niche !== null) return '--niche';
  return event.accepted ? '--accepted' : '--rejected';
}

/** The evaluations of the parents; two after a crossover in a population. */
function parents(event) {
  return event.parents ?? (event.parent === null ? [] : [event.parent]);
}

/** Returns an event in lines of text. */
function description(event) {
  return [
    `evaluation ${event.evaluation}`,
    genotypeText(event.genotype),
    event.mutation.join(', ').replaceAll('_', ' ') || 'first network',
    ...(event.generation === undefined ? [] : [`generation ${event.generation}`]),
    ...(parents(event).length > 1 ? [`child of evaluations ${parents(event).join(' and ')}`] : []),
    event.failure ? `failed: ${event.failure}` : `${percent(event.fitness)}, ${event.accepted ? 'accepted' : 'rejected'}`,
    ...(event.niche === null ? [] : [`niche of evaluation ${event.niche}`]),
  ];
}

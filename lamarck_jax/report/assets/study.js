// The page of a study.

const STYLES = [
  ['#0072B2', 'solid'], ['#E69F00', 'dash'], ['#009E73', 'dot'], ['#CC79A7', 'dashdot'],
  ['#7F7F7F', 'longdash'], ['#D55E00', 'longdashdot'], ['#56B4E9', '2px,6px'], ['#B8A100', '9px,3px,3px,3px'],
];

function grid(header, rows) {
  return el('div', {class: 'scroll'}, el('table', {},
    el('thead', {}, el('tr', {}, ...header.map((text) => el('th', {scope: 'col'}, text)))),
    el('tbody', {}, ...rows.map((row) => el('tr', {}, ...row.map((cell) => el('td', {}, cell)))))));
}

function showStudy(data, root) {
  charts.length = 0;
  document.getElementById('title').textContent = data.title;
  const runs = data.settings.flatMap((setting) => setting.runs);
  document.getElementById('subtitle').textContent =
    `${data.dataset}, ${data.budget_epochs} epochs: ${runs.length} of ${data.num_runs} runs finished`;
  const accuracy = el('div', {class: 'chart', id: 'study-chart'});
  root.replaceChildren(
    section('Accuracy', accuracy),
    section('Table', grid(Object.keys(data.table[0] || {}), data.table.map((row) => Object.values(row)))),
    section('Tests', el('pre', {tabindex: '0', 'aria-label': 'tests'}, data.report)),
    section('Figures', el('div', {class: 'figures'}, ...data.figures.map(([name, source]) =>
      el('img', {src: source, alt: `figure: ${name.replaceAll('_', ' ')}`})))),
    section('Runs', grid(['setting', 'seed', data.selected_name, 'report'], data.runs.map((run) => [
      run.setting, `${run.seed}`, run.best === null ? run.why : percent(run.best),
      run.link ? el('a', {href: run.link}, 'report') : '–',
    ]))),
  );
  chart(accuracy, () => [data.settings.flatMap((setting, index) => {
    const [color, dash] = STYLES[index % STYLES.length];
    return setting.runs.map((run, number) => ({
      x: run.epochs, y: run.best_fitness, name: plain(setting.label), legendgroup: setting.name, showlegend: number === 0,
      mode: 'lines', line: {color, dash, width: 1.5, shape: 'hv'}, opacity: 0.7,
      hovertemplate: `${plain(setting.name)}, seed ${run.seed}<br>%{x} epochs: %{y:.1%}<extra></extra>`,
    }));
  }), layout({xaxis: {title: {text: 'training epochs used'}}, yaxis: {title: {text: data.selected_name}, tickformat: '.0%'}})]);
}

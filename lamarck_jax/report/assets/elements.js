'use strict';

// Elements, text and charts that both kinds of page use.

const SVG = 'http://www.w3.org/2000/svg';
const PAGE_ROWS = 50;
const percent = (value) => (value === null ? '–' : `${(100 * value).toFixed(1)} %`);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Makes an element: el('p', {class: 'x'}, 'text', child). */
function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Makes an SVG element likewise. */
function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (value !== null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function duration(seconds) {
  const [h, m] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min ${Math.round(seconds % 60)} s` : `${seconds.toFixed(1)} s`;
}

function genotypeText(blocks) {
  return blocks.map(([f, k, s]) => `${f}c${k}${s > 1 ? `s${s}` : ''}`).join(' ');
}

/** Returns a line per field of nested objects. */
function flat(value, name = '') {
  const nested = value !== null && typeof value === 'object'
    && (!Array.isArray(value) || value.some((part) => part !== null && typeof part === 'object'));
  if (!nested) return [`${name}: ${Array.isArray(value) ? value.join(', ') : value}`];
  return Object.entries(value).flatMap(([key, part]) => flat(part, name ? `${name}.${key}` : key));
}

function section(title, ...children) {
  const id = title.toLowerCase().replace(/[^a-z]+/g, '-');
  return el('section', {'aria-labelledby': id}, el('h2', {id}, title), ...children);
}

function tiles(entries) {
  return el('dl', {class: 'tiles'}, ...entries.map(([name, value, long]) =>
    el('div', {}, el('dt', {}, name), el('dd', long ? {class: 'long'} : {}, value))));
}

// ----------------------------------------------------------------------------
// Charts
// ----------------------------------------------------------------------------

function layout(extra) {
  const axis = {gridcolor: css('--line'), zerolinecolor: css('--line'), automargin: true};
  const {xaxis, yaxis, ...rest} = extra;
  return {
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    font: {color: css('--ink'), family: 'system-ui, sans-serif'},
    margin: {l: 60, r: 10, t: 10, b: 45},
    hoverlabel: {bgcolor: css('--panel'), font: {color: css('--ink')}},
    legend: {orientation: 'h', y: 1.12},
    xaxis: {...axis, ...xaxis},
    yaxis: {...axis, ...yaxis},
    ...rest,
  };
}

/** Returns text as Plotly shows it as it is: without tags, links and templates. */
function plain(text) {
  const entities = {'&': '&amp;', '<': '&lt;', '>': '&gt;', '%{': '% {'};
  return `${text}`.replace(/[&<>]|%\{/g, (found) => entities[found]);
}

// On a narrow screen the toolbar would lie over the legend.
const OPTIONS = {responsive: true, displaylogo: false, displayModeBar: innerWidth < 700 ? false : 'hover'};
const charts = [];

/** Draws a chart, and draws it again when the colours of the page change. */
function chart(element, make) {
  const draw = () => Plotly.react(element, ...make(), OPTIONS);
  charts.push(draw);
  draw();
  return draw;
}

matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  for (const draw of charts) draw();
});

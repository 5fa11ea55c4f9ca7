// Draws dashboards, or single panels, from what a Prometheus has, into PNGs.
//
//   node render.mjs --prometheus URL --dashboard FILE --out FILE.png [--panel TITLE]…
//                   [--var NAME=REGEX]… [--from UNIX] [--to UNIX] [--title TEXT]
//                   [--side TITLE:NAME=REGEX]…
//
// --side puts the chosen panels beside each other, once for each value of a variable, with the same axes.
//
// A development tool: nothing of backlogd needs it. It shows that panels have data, sane units and
// readable legends; not that Grafana's variables and migrations work.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';

const POINTS = 240;
const here = import.meta.dirname;
const { values: flags } = parseArgs({
  options: {
    prometheus: { type: 'string' }, dashboard: { type: 'string' }, out: { type: 'string' },
    panel: { type: 'string', multiple: true }, var: { type: 'string', multiple: true },
    from: { type: 'string' }, to: { type: 'string' }, title: { type: 'string' },
    side: { type: 'string', multiple: true },
  },
});
for (const name of ['prometheus', 'dashboard', 'out']) {
  if (!flags[name]) {
    throw new Error(`--${name} is missing`);
  }
}
const to = Number(flags.to ?? Math.floor(Date.now() / 1000));
const from = Number(flags.from ?? to - 600);
const step = Math.max(1, Math.round((to - from) / POINTS));
const chosen = Object.fromEntries((flags.var ?? []).map((it) => it.split(/=(.*)/s).slice(0, 2)));

function expand(expr, variables, values) {
  let text = expr.replaceAll('$__rate_interval', `${Math.max(4 * step, 20)}s`).replaceAll('$__range', `${to - from}s`);
  for (const name of variables) {
    text = text.replaceAll(`$${name}`, values[name] ?? '.*');
  }
  if (text.includes('$')) {
    throw new Error(`a variable is left in ${text}`);
  }
  return text;
}

async function ask(api, parameters) {
  const url = `${flags.prometheus}/api/v1/${api}?${new URLSearchParams(parameters)}`;
  const answer = await (await fetch(url)).json();
  if (answer.status !== 'success') {
    throw new Error(`${parameters.query}: ${answer.error}`);
  }
  return answer.data.result;
}

const NUMBERS = { NaN: null, '+Inf': Infinity, '-Inf': -Infinity };
const number = (text) => (text in NUMBERS ? NUMBERS[text] : Number(text));

function legend(format, metric) {
  return format.replace(/{{\s*(\w+)\s*}}/g, (_, name) => metric[name] ?? '').trim();
}

/** Of a native histogram a series for each power of two, counts of all below as classic buckets have them. */
function classic(histograms) {
  const power = (bound) => Math.max(-20, Math.ceil(Math.log2(Number(bound)) - 1e-6));
  const counts = histograms.map(([at, { buckets }]) => [
    at, (buckets ?? []).map(([, , upper, count]) => [power(upper), Number(count)]),
  ]);
  const powers = counts.flatMap(([, it]) => it.map(([p]) => p));
  const [least, most] = [Math.min(...powers), Math.max(...powers)];
  if (!Number.isFinite(least)) {
    return [];
  }
  return Array.from({ length: most - least + 1 }, (_, i) => ({
    metric: { le: String(2 ** (least + i)) },
    values: counts.map(([at, it]) => [
      at, String(it.filter(([p]) => p <= least + i).reduce((sum, [, n]) => sum + n, 0)),
    ]),
  }));
}

/** A series for each of a range query's; points that are missing are null. */
async function lines(target, query) {
  const result = await ask('query_range', { query, start: from, end: to, step });
  const times = Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, i) => from + i * step);
  const plain = result.filter((it) => it.values);
  const native = result.filter((it) => it.histograms).flatMap((it) => classic(it.histograms));
  return [...plain, ...native].map(({ metric, values }) => {
    const known = new Map(values.map(([at, value]) => [Math.round(at), number(value)]));
    return {
      refId: target.refId,
      fields: [
        { name: 'Time', type: 'time', time: true, values: times.map((at) => at * 1000) },
        {
          name: 'Value', type: 'number', labels: metric, display: legend(target.legendFormat, metric),
          values: times.map((at) => known.get(at) ?? null),
        },
      ],
    };
  });
}

/** A series of one value for each of a query's newest. */
async function newest(target, query) {
  const result = (await ask('query', { query, time: to })).filter((it) => it.value);
  return result.map(({ metric, value }) => ({
    refId: target.refId,
    fields: [{
      name: 'Value', type: 'number', labels: metric, display: legend(target.legendFormat, metric),
      values: [number(value[1])],
    }],
  }));
}

/** The newest values of all queries as one table, merged and organised as the panel's transformations say. */
async function table(panel, values) {
  const rows = new Map();
  const valueNames = [];
  for (const target of panel.targets) {
    const name = panel.targets.length === 1 ? 'Value' : `Value #${target.refId}`;
    valueNames.push(name);
    const query = expand(target.expr, variables, values);
    for (const { metric, value } of (await ask('query', { query, time: to })).filter((it) => it.value)) {
      const key = JSON.stringify(Object.entries(metric).sort());
      rows.set(key, { ...rows.get(key) ?? metric, [name]: number(value[1]) });
    }
  }
  const all = [...rows.values()];
  const { excludeByName, indexByName, renameByName } = panel.transformations.at(-1).options;
  const place = (name) => indexByName[name] ?? 1000 + valueNames.indexOf(name);
  const names = [...new Set(all.flatMap((it) => Object.keys(it)))]
    .filter((name) => !excludeByName[name]).sort((a, b) => place(a) - place(b));
  const shown = (name) => renameByName[name] ?? name;
  const [{ displayName, desc }] = panel.options.sortBy;
  const by = names.find((name) => shown(name) === displayName);
  const sign = desc ? -1 : 1;
  all.sort((a, b) => sign * (typeof a[by] === 'number' ? a[by] - b[by] : String(a[by]).localeCompare(b[by])));
  return [{
    refId: 'A',
    fields: names.map((name) => {
      const isValue = valueNames.includes(name);
      return {
        name: shown(name), type: isValue ? 'number' : 'string', values: all.map((it) => it[name] ?? (isValue ? null : '')),
      };
    }),
  }];
}

const board = JSON.parse(readFileSync(flags.dashboard, 'utf8'));
const variables = board.templating.list.map((it) => it.name);
const wanted = flags.panel ? board.panels.filter((it) => flags.panel.includes(it.title)) : board.panels;
if (flags.panel && wanted.length !== flags.panel.length) {
  throw new Error(`${flags.dashboard} has not all of ${flags.panel.join(', ')}`);
}

async function filled(panel, values) {
  if (panel.type === 'table') {
    return { ...panel, series: await table(panel, values) };
  }
  const series = [];
  for (const target of panel.targets ?? []) {
    const query = expand(target.expr, variables, values);
    series.push(...await (target.instant ? newest : lines)(target, query));
  }
  return { ...panel, series };
}

/** The highest that is drawn: of all series, or of their sums. */
function highest({ series, fieldConfig }) {
  const columns = series.map((it) => it.fields.at(-1).values);
  const isStacked = fieldConfig.defaults.custom?.stacking?.mode === 'normal';
  const together = (i) => columns.map((it) => it[i] ?? 0);
  return Math.max(0, ...(columns[0] ?? []).map((_, i) => (
    isStacked ? together(i).reduce((a, b) => a + b, 0) : Math.max(...together(i))
  )));
}

/** The wanted panels for each side in a column, with the axes of the other side. */
async function besides() {
  const w = 24 / flags.side.length;
  const sides = flags.side.map((it) => it.match(/^(.*):(\w+)=(.*)$/s).slice(1));
  const placed = sides.map(([title], i) => ({
    id: `side ${i}`, type: 'row', title, gridPos: { x: i * w, y: 0, w, h: 1 }, series: [],
  }));
  let y = 1;
  for (const panel of wanted) {
    const row = await Promise.all(sides.map(([, name, value]) => filled(panel, { ...chosen, [name]: value })));
    const top = Math.max(...row.map(highest));
    row.forEach((it, i) => {
      const custom = { ...it.fieldConfig.defaults.custom, axisSoftMax: top };
      const fieldConfig = { ...it.fieldConfig, defaults: { ...it.fieldConfig.defaults, custom } };
      placed.push({ ...it, id: `${it.id} ${i}`, fieldConfig, gridPos: { x: i * w, y, w, h: it.gridPos.h } });
    });
    y += panel.gridPos.h;
  }
  return placed;
}

/** The board as it is; single panels below each other. */
async function inOrder() {
  const placed = [];
  let y = 0;
  for (const panel of wanted) {
    const gridPos = flags.panel ? { x: 0, y, w: 24, h: panel.gridPos.h } : panel.gridPos;
    y += panel.gridPos.h;
    placed.push({ ...await filled(panel, chosen), gridPos });
  }
  return placed;
}

const panels = await (flags.side ? besides() : inOrder());
const folder = mkdtempSync(path.join(tmpdir(), 'dashboard-'));
try {
  await build({
    entryPoints: [path.join(here, 'page.jsx')], bundle: true, outfile: path.join(folder, 'page.js'),
    jsx: 'automatic', minify: true, logLevel: 'error',
    define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
    loader: { '.svg': 'dataurl', '.woff2': 'dataurl', '.woff': 'dataurl', '.ttf': 'dataurl' },
  });
  const data = JSON.stringify({ title: flags.title ?? board.title, panels, from, to }).replaceAll('<', '\\u003c');
  const page = path.join(folder, 'page.html');
  writeFileSync(page, `<!doctype html><meta charset=utf-8><link rel=stylesheet href=page.css>
<style>body{margin:0;background:#111217}</style><div id=root></div>
<script>window.BOARD=${data}</script><script src=page.js></script>`);
  const height = Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h)) * 38 + 80;
  const chromium = (...wanted) => execFileSync('chromium', [
    '--headless', '--no-sandbox', '--hide-scrollbars', '--virtual-time-budget=8000', `--window-size=1472,${height}`,
    ...wanted, `file://${page}`,
  ], { stdio: ['ignore', 'pipe', process.env.VERBOSE ? 'inherit' : 'ignore'], encoding: 'utf8', maxBuffer: 1 << 28 });
  const [, error] = chromium('--dump-dom').match(/<html[^>]* data-error="([^"]*)"/) ?? [];
  if (error) {
    throw new Error(`the page is not drawn: ${error}`);
  }
  chromium(`--screenshot=${path.resolve(flags.out)}`);
} finally {
  if (!process.env.KEEP) {
    rmSync(folder, { recursive: true });
  }
}
console.log(flags.out);

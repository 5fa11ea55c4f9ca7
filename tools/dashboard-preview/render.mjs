// Draws dashboards, or single panels, from what a Prometheus has, into PNGs.
//
//   node render.mjs --prometheus URL --dashboard FILE --out FILE.png [--panel TITLE]…
//                   [--var NAME=REGEX]… [--from UNIX] [--to UNIX] [--title TEXT]
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

function expand(expr, variables) {
  let text = expr.replaceAll('$__rate_interval', `${Math.max(4 * step, 20)}s`);
  for (const name of variables) {
    text = text.replaceAll(`$${name}`, chosen[name] ?? '.*');
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

const number = (text) => (text === 'NaN' ? null : Number(text));

function legend(format, metric) {
  return format.replace(/{{\s*(\w+)\s*}}/g, (_, name) => metric[name] ?? '').trim();
}

/** A series for each of a range query's; points that are missing are null. */
async function lines(target, query) {
  const result = await ask('query_range', { query, start: from, end: to, step });
  const times = Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, i) => from + i * step);
  return result.filter((it) => it.values).map(({ metric, values }) => {
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

/** One table of the newest values; or a series for each of them. */
async function newest(target, query, isTable) {
  const result = (await ask('query', { query, time: to })).filter((it) => it.value);
  if (!isTable) {
    return result.map(({ metric, value }) => ({
      refId: target.refId,
      fields: [{
        name: 'Value', type: 'number', labels: metric, display: legend(target.legendFormat, metric),
        values: [number(value[1])],
      }],
    }));
  }
  const rows = result.sort((a, b) => Number(b.value[1]) - Number(a.value[1]));
  const names = [...new Set(rows.flatMap(({ metric }) => Object.keys(metric)))]
    .filter((name) => !['__name__', 'job', 'container'].includes(name));
  return [{
    refId: target.refId,
    fields: [
      ...names.map((name) => ({ name, type: 'string', values: rows.map(({ metric }) => metric[name] ?? '') })),
      { name: 'Value', type: 'number', values: rows.map(({ value }) => number(value[1])) },
    ],
  }];
}

const board = JSON.parse(readFileSync(flags.dashboard, 'utf8'));
const variables = board.templating.list.map((it) => it.name);
const wanted = flags.panel ? board.panels.filter((it) => flags.panel.includes(it.title)) : board.panels;
if (flags.panel && wanted.length !== flags.panel.length) {
  throw new Error(`${flags.dashboard} has not all of ${flags.panel.join(', ')}`);
}
let y = 0;
const panels = [];
for (const panel of wanted) {
  const series = [];
  for (const target of panel.targets ?? []) {
    const query = expand(target.expr, variables);
    const isTable = panel.type === 'table';
    series.push(...await (target.instant ? newest(target, query, isTable) : lines(target, query)));
  }
  const gridPos = flags.panel ? { x: 0, y, w: 24, h: panel.gridPos.h } : panel.gridPos;
  y += panel.gridPos.h;
  panels.push({ ...panel, gridPos, series });
}

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
  execFileSync('chromium', [
    '--headless', '--no-sandbox', '--hide-scrollbars', '--virtual-time-budget=8000',
    `--window-size=1472,${height}`, `--screenshot=${path.resolve(flags.out)}`, `file://${page}`,
  ], { stdio: ['ignore', 'ignore', process.env.VERBOSE ? 'inherit' : 'ignore'] });
} finally {
  if (!process.env.KEEP) {
    rmSync(folder, { recursive: true });
  }
}
console.log(flags.out);

// Lays the panels of one dashboard out as Grafana does, and draws them with Grafana's components.
// In: window.BOARD, what render.mjs has asked Prometheus for. Heatmaps and state timelines live in
// Grafana's server code, and its table scrolls: these three are drawn here.
import {
  FieldType, createDataFrame, createTheme, dateTime, getDisplayProcessor, getDisplayValueAlignmentFactors,
  getFieldDisplayName,
  ThemeContext,
} from '@grafana/data';
import {
  BarGauge, BigValue, BigValueColorMode, BigValueTextMode, GlobalStyles,
  PanelChrome, TimeSeries,
} from '@grafana/ui';
import React from 'react';
import { createRoot } from 'react-dom/client';

const theme = createTheme({ colors: { mode: 'dark' } });
const CELL = 30;
const GAP = 8;
const WIDTH = 1440;
const { title, panels, from, to } = window.BOARD;
const timeRange = {
  from: dateTime(from * 1000), to: dateTime(to * 1000),
  raw: { from: dateTime(from * 1000), to: dateTime(to * 1000) },
};

/** Frames with the panel's field configuration applied. */
function framesOf(panel) {
  const frames = panel.series.map((series) => createDataFrame({
    refId: series.refId,
    fields: series.fields.map((field) => ({
      name: field.name, type: field.type, values: field.values, labels: field.labels ?? undefined,
      config: { displayNameFromDS: field.display ?? undefined },
    })),
  }));
  const fields = frames.flatMap((frame) => frame.fields.map((field) => ({ frame, field })));
  fields.filter(({ field }) => field.type === FieldType.number).forEach(({ frame, field }, seriesIndex) => {
    const known = field.values.filter((v) => Number.isFinite(v));
    const [min, max] = [Math.min(...known), Math.max(...known)];
    field.state = { ...field.state, seriesIndex, range: { min, max, delta: max - min } };
    configure(panel, frame.refId, field, field.config.displayNameFromDS ?? field.name);
    field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
  });
  return frames;
}

/** Defaults of the panel, and what is set for the query, or for the name. */
function configure(panel, refId, field, name) {
  const { defaults, overrides } = panel.fieldConfig;
  field.config = { ...defaults, ...field.config, links: [], custom: { ...defaults.custom } };
  const ours = overrides.filter(({ matcher }) => (
    matcher.options === (matcher.id === 'byName' ? name : refId)
  ));
  for (const { id, value } of ours.flatMap((it) => it.properties)) {
    if (id.startsWith('custom.')) {
      field.config.custom[id.slice('custom.'.length)] = value;
    } else {
      field.config[id] = value;
    }
  }
}

function numbers(frames) {
  return frames.flatMap((frame) => frame.fields
    .filter((field) => field.type === FieldType.number)
    .map((field) => {
      const known = field.values.filter((v) => v !== null && !Number.isNaN(v));
      return { frame, field, last: known.length > 0 ? known[known.length - 1] : null };
    }));
}

function Empty({ panel, width, height }) {
  const style = {
    width, height, display: 'flex', alignItems: 'center', justifyContent: 'center',
    color: theme.colors.text.secondary, fontSize: 14, textAlign: 'center',
  };
  return <div style={style}>{panel.fieldConfig.defaults.noValue}</div>;
}

function Stats({ panel, frames, width, height }) {
  const all = numbers(frames).filter(({ last }) => last !== null);
  const each = Math.floor(width / all.length);
  return (
    <div style={{ display: 'flex' }}>
      {all.map(({ frame, field, last }, i) => (
        <BigValue
          key={i} width={each} height={height} theme={theme} count={all.length}
          value={{ ...field.display(last), title: all.length > 1 ? getFieldDisplayName(field, frame, frames) : undefined }}
          colorMode={BigValueColorMode.Value} graphMode={panel.options.graphMode}
          textMode={BigValueTextMode.Auto} text={panel.options.text}
          sparkline={panel.options.graphMode === 'none' ? undefined : { y: field, x: frame.fields[0] }}
        />
      ))}
    </div>
  );
}

function Bars({ panel, frames, width, height }) {
  const all = numbers(frames).filter(({ last }) => last !== null).sort((a, b) => b.last - a.last);
  const each = Math.min(50, Math.floor(height / all.length));
  const values = all.map(({ frame, field, last }) => (
    { ...field.display(last), title: getFieldDisplayName(field, frame, frames) }
  ));
  const alignmentFactors = getDisplayValueAlignmentFactors(values.map((display) => ({ display })));
  return all.map(({ field, last }, i) => (
    <div key={i} style={{ height: each, overflow: 'hidden' }}>
      <BarGauge
        width={width} height={each - 4} orientation="horizontal" theme={theme} displayMode="basic"
        field={{ ...field.config, min: 0, max: field.config.max ?? Math.max(1e-9, ...all.map((it) => it.last)) }}
        display={field.display} showUnfilled valueDisplayMode="color" itemSpacing={4} lcdCellWidth={12}
        value={values[i]} alignmentFactors={alignmentFactors} text={panel.options.text} namePlacement="auto"
      />
    </div>
  ));
}

function Lines({ panel, frames, width, height }) {
  return (
    <TimeSeries
      width={width} height={height} frames={frames} timeRange={timeRange} timeZone="utc"
      legend={panel.options.legend} structureRev={1}
    />
  );
}

/** Newest values as rows, as many as there is room for. */
function Rows({ panel, frames, width, height }) {
  const { text, border, primary } = theme.colors;
  const fields = frames[0].fields.filter((field) => {
    configure(panel, undefined, field, field.name);
    return !field.config.custom.hidden;
  });
  const cell = (field, i) => {
    const value = field.values[i];
    const mapped = field.config.mappings.find((it) => it.options[value])?.options[value];
    if (mapped) {
      return <span style={{ color: theme.visualization.getColorByName(mapped.color) }}>{value}</span>;
    }
    if (field.type !== FieldType.number) {
      return <span style={{ color: field.config.links.length > 0 ? primary.text : text.primary }}>{value}</span>;
    }
    const { text: shown, prefix, suffix, color } = field.display(value);
    const isColoured = field.config.custom.cellOptions?.type === 'color-text';
    return <span style={{ color: isColoured ? color : text.primary }}>{value === null ? '' : [prefix, shown, suffix].join('')}</span>;
  };
  const style = (field) => ({
    textAlign: field.type === FieldType.number ? 'right' : 'left', padding: '0 8px', height: 35, whiteSpace: 'nowrap',
    borderBottom: `1px solid ${border.weak}`, overflow: 'hidden', textOverflow: 'ellipsis', maxWidth: 300,
  });
  const n = Math.min(frames[0].length, Math.floor(height / 36) - 1);
  return (
    <div style={{ width, height, overflow: 'hidden' }}>
      <table style={{ width: '100%', borderCollapse: 'collapse', fontSize: 14 }}>
        <thead>
          <tr>{fields.map((it) => <th key={it.name} style={{ ...style(it), color: text.secondary, fontWeight: 500 }}>{it.name}</th>)}</tr>
        </thead>
        <tbody>
          {Array.from({ length: n }, (_, i) => (
            <tr key={i}>{fields.map((it) => <td key={it.name} style={style(it)}>{cell(it, i)}</td>)}</tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function colour(share) {
  const stops = [[39, 24, 20], [166, 76, 12], [255, 178, 73], [255, 245, 200]];
  const at = Math.min(share, 0.999) * (stops.length - 1);
  const [a, b] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]];
  return `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * (at % 1))).join(',')})`;
}

/** Buckets above each other, newest right. */
function Heat({ frames, width, height }) {
  const rows = frames.map((frame) => ({
    le: Number(frame.fields[1].labels.le.replace('+Inf', 'Infinity')),
    times: frame.fields[0].values, values: frame.fields[1].values,
  })).sort((a, b) => a.le - b.le);
  const [left, bottom] = [62, 22];
  const most = Math.max(1e-9, ...rows.flatMap((row, i) => row.values.map((v, j) => v - (i > 0 ? rows[i - 1].values[j] : 0))));
  const cellHeight = (height - bottom) / rows.length;
  const x = (ms) => left + (ms / 1000 - from) / (to - from) * (width - left);
  const step = rows[0].times.length > 1 ? x(rows[0].times[1]) - x(rows[0].times[0]) : 8;
  const label = { fill: theme.colors.text.secondary, fontSize: 11 };
  const ticks = [0, 1, 2, 3, 4].map((i) => from + (to - from) * i / 4);
  return (
    <svg width={width} height={height}>
      {rows.flatMap((row, i) => row.times.map((ms, j) => {
        const n = row.values[j] - (i > 0 ? rows[i - 1].values[j] : 0);
        return n > 0 && (
          <rect key={`${i} ${j}`} x={x(ms) - step} width={Math.max(1, step - 1)} y={(rows.length - 1 - i) * cellHeight}
            height={Math.max(1, cellHeight - 1)} fill={colour(Math.sqrt(n / most))} />
        );
      }))}
      {rows.map((row, i) => (rows.length < 16 || i % 2 === 0) && (
        <text key={i} x={left - 6} y={(rows.length - i) * cellHeight - 2} textAnchor="end" {...label}>{seconds(row.le)}</text>
      ))}
      {ticks.map((at, i) => (
        <text key={i} x={x(at * 1000)} y={height - 6} textAnchor={i === 4 ? 'end' : 'start'} {...label}>{clock(at)}</text>
      ))}
    </svg>
  );
}

/** One bar for each series. */
function States({ frames, width, height }) {
  const [left, bottom] = [Math.min(260, width / 2), 22];
  const each = Math.min(34, (height - bottom) / frames.length);
  const x = (ms) => left + (ms / 1000 - from) / (to - from) * (width - left);
  const label = { fill: theme.colors.text.secondary, fontSize: 11 };
  const ticks = [0, 1, 2].map((i) => from + (to - from) * i / 2);
  return (
    <svg width={width} height={height}>
      {frames.map((frame, i) => {
        const [time, field] = frame.fields;
        const step = time.values.length > 1 ? x(time.values[1]) - x(time.values[0]) : 8;
        return (
          <g key={i}>
            <text x={left - 6} y={i * each + each / 2 + 4} textAnchor="end" {...label}>{getFieldDisplayName(field, frame, frames)}</text>
            {time.values.map((ms, j) => field.values[j] !== null && (
              <rect key={j} x={x(ms) - step} width={step + 0.5} y={i * each + 3} height={each - 6}
                fill={field.values[j] > 0 ? '#F2495C' : '#73BF69'} />
            ))}
          </g>
        );
      })}
      {ticks.map((at, i) => (
        <text key={i} x={x(at * 1000)} y={height - 6} textAnchor={['start', 'middle', 'end'][i]} {...label}>{clock(at)}</text>
      ))}
    </svg>
  );
}

function clock(at) {
  return new Date(at * 1000).toISOString().slice(11, 19);
}

function seconds(n) {
  if (!Number.isFinite(n)) {
    return 'more';
  }
  const [value, unit] = n >= 1 ? [n, 's'] : n >= 1e-3 ? [n * 1e3, 'ms'] : [n * 1e6, 'µs'];
  return `${Number(value.toPrecision(3))} ${unit}`;
}

const DRAWN = {
  timeseries: Lines, stat: Stats, bargauge: Bars, table: Rows, heatmap: Heat, 'state-timeline': States,
};

function Panel({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const column = (WIDTH + GAP) / 24;
  const place = {
    position: 'absolute', left: x * column, top: y * (CELL + GAP), width: w * column - GAP,
    height: h * (CELL + GAP) - GAP,
  };
  if (panel.type === 'row') {
    return <div style={{ ...place, color: theme.colors.text.primary, fontSize: 18, paddingTop: 4 }}>{panel.title}</div>;
  }
  const Inner = DRAWN[panel.type];
  const frames = framesOf(panel);
  const isEmpty = panel.type === 'table'
    ? frames[0].length === 0
    : numbers(frames).every(({ last }) => last === null);
  return (
    <div style={place}>
      <PanelChrome title={panel.title} width={place.width} height={place.height} padding="sm">
        {(width, height) => (isEmpty
          ? <Empty panel={panel} width={width} height={height} />
          : <Inner panel={panel} frames={frames} width={width} height={height} />)}
      </PanelChrome>
    </div>
  );
}

function Board() {
  const height = Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h)) * (CELL + GAP);
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div id="board" style={{ width: WIDTH, padding: 16, background: theme.colors.background.canvas }}>
        {title && <h1 style={{ color: theme.colors.text.primary, fontSize: 22, margin: '0 0 12px' }}>{title}</h1>}
        <div style={{ position: 'relative', width: WIDTH, height }}>
          {panels.map((panel) => <Panel key={panel.id} panel={panel} />)}
        </div>
      </div>
    </ThemeContext.Provider>
  );
}

// render.mjs looks for it
const fail = (error) => document.documentElement.setAttribute('data-error', String(error?.stack ?? error));
createRoot(document.getElementById('root'), { onUncaughtError: fail }).render(<Board />);

// Makes the pictures of docs/pictures from nothing but this repository: two hosts, each a network namespace
// with servers in trouble (load.py) and an agent; a Prometheus that scrapes both; render.mjs.
//
//   node pictures.mjs [--minutes 10] [--agent PATH] [--data FOLDER] [--again]
//
// Root, with ip, nsenter, python3 (3.11), prometheus, chromium and pngquant. --data keeps what Prometheus has,
// --again draws from that and runs nothing. All that it starts ends with it, by its process id.
import { execFileSync, spawn } from 'node:child_process';
import {
  existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';

const here = import.meta.dirname;
const root = path.resolve(here, '../..');
const { values: flags } = parseArgs({
  options: {
    minutes: { type: 'string', default: '10' },
    agent: { type: 'string', default: path.join(root, 'target/release/backlogd') },
    data: { type: 'string' }, again: { type: 'boolean', default: false },
  },
});

const PROMETHEUS = '127.0.0.1:9090';
const HOSTS = [
  { name: 'web-1', roles: ['api', 'blocking', 'shedding', 'crowd', 'users'], ports: '20000 59999' },
  {
    name: 'app-1', ports: '20000 21999',
    roles: ['search', 'orders', 'cache', 'files', 'statsd', 'webhook', 'pool', 'batch', 'cron', 'sensors'],
  },
];
// of load.py
const TWO_WAVES = 480;
const address = (host) => `10.77.${HOSTS.indexOf(host)}.2`;
const namespace = (name) => `pictures-${process.pid}-${name}`;

const folder = path.resolve(flags.data ?? mkdtempSync(path.join(tmpdir(), 'pictures-')));
const running = [];

function start(name, program, ...parameters) {
  const child = spawn('nsenter', [`--net=/run/netns/${namespace(name)}`, program, ...parameters], {
    stdio: ['ignore', 'ignore', process.env.VERBOSE ? 'inherit' : 'ignore'],
  });
  child.ended = new Promise((resolve) => {
    child.once('exit', resolve);
    child.once('error', resolve);
  });
  running.push(child);
  return child;
}

const ip = (...parameters) => execFileSync('ip', parameters);

/** Namespaces: Prometheus' own, and one for each host, with a wire between. */
function network() {
  for (const name of ['prometheus', ...HOSTS.map((it) => it.name)]) {
    ip('netns', 'add', namespace(name));
    ip('-n', namespace(name), 'link', 'set', 'lo', 'up');
  }
  for (const [i, host] of HOSTS.entries()) {
    const [ours, theirs] = [namespace('prometheus'), namespace(host.name)];
    ip('-n', ours, 'link', 'add', `to${i}`, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', theirs);
    ip('-n', ours, 'addr', 'add', `10.77.${i}.1/30`, 'dev', `to${i}`);
    ip('-n', theirs, 'addr', 'add', `${address(host)}/30`, 'dev', 'eth0');
    ip('-n', ours, 'link', 'set', `to${i}`, 'up');
    ip('-n', theirs, 'link', 'set', 'eth0', 'up');
    execFileSync('nsenter', [`--net=/run/netns/${theirs}`, 'sysctl', '-qw', `net.ipv4.ip_local_port_range=${host.ports}`]);
  }
}

// the tracepoints of system calls, where the kernel gives no better hook, are found there
const WITH_TRACEFS = 'mount -t tracefs nodev /sys/kernel/tracing || true; exec "$0" "$@"';

/** The webhook is app-1's alone: that what cannot be sent waits is on a panel, too. */
function agent(host) {
  const config = path.join(folder, `${host.name}.toml`);
  const listener = host.name === 'web-1' ? 8080 : 9300;
  writeFileSync(config, `[[expect]]\nport = ${listener}\n\n[[webhook]]\nurl = "http://127.0.0.1:9095/"\n`);
  start(
    host.name, 'unshare', '--mount', 'sh', '-c', WITH_TRACEFS, flags.agent, 'run', '--config', config, '--own-netns-only', '--accept-tracepoints',
    '--listen', `${address(host)}:10511`, '--socket', path.join(folder, `${host.name}.sock`),
  );
}

/** With the repository's rules; hosts by name. Native histograms: the waits are finer than four to one. */
function prometheus() {
  const targets = HOSTS.map((it) => (
    `      - {targets: ["${address(it)}:10511"], labels: {instance: ${it.name}}}`
  ));
  writeFileSync(path.join(folder, 'prometheus.yaml'), [
    'global: {scrape_interval: 2s, evaluation_interval: 15s}',
    `rule_files: ["${root}/dashboards/alerts.yaml", "${root}/dashboards/recording.yaml"]`,
    'scrape_configs:', '  - job_name: backlogd', '    static_configs:', ...targets, '',
  ].join('\n'));
  start(
    'prometheus', 'prometheus', '--enable-feature=native-histograms', `--config.file=${path.join(folder, 'prometheus.yaml')}`,
    `--storage.tsdb.path=${path.join(folder, 'tsdb')}`, `--web.listen-address=${PROMETHEUS}`,
  );
}

/** One picture, with few colours: a quarter of the size. */
function draw(name, { from, to }, ...parameters) {
  const out = path.join(root, 'docs/pictures', `${name}.png`);
  execFileSync('nsenter', [
    `--net=/run/netns/${namespace('prometheus')}`, process.execPath, path.join(here, 'render.mjs'),
    '--prometheus', `http://${PROMETHEUS}`, '--from', String(from), '--to', String(to),
    '--out', out, ...parameters,
  ], { stdio: 'inherit' });
  execFileSync('pngquant', ['--force', '--strip', '--output', out, '192', out]);
  console.log(`  ${Math.ceil(statSync(out).size / 1024)} KiB`);
}

function pictures(time) {
  mkdirSync(path.join(root, 'docs/pictures'), { recursive: true });
  const board = (name) => ['--dashboard', path.join(root, 'dashboards', `${name}.json`)];
  draw('fleet', time, ...board('fleet'));
  draw('listener', time, ...board('listener'), '--var', 'comm=blocking', '--var', 'port=8443');
  draw('agent', time, ...board('agent'));
  draw(
    'blocking-against-shedding', { ...time, to: Math.min(time.to, time.from + TWO_WAVES) }, ...board('listener'),
    '--title', 'The same overload: a server that waits before accept, and one that accepts and sheds',
    '--side', 'A permit first, then accept:port=8443', '--side', 'Accept first, shed at once when there is no permit:port=8444',
    '--panel', 'Accept queue', '--panel', 'Quantiles of the wait', '--panel', 'Listen drops by reason',
    '--panel', 'From SYN to close',
  );
}

/** Ends what runs, the last first, and takes the namespaces away. */
async function end() {
  for (const child of running.reverse()) {
    child.kill('SIGTERM');
    await Promise.race([child.ended, sleep(10_000, undefined, { ref: false })]);
    child.kill('SIGKILL');
    await child.ended;
  }
  for (const name of ['prometheus', ...HOSTS.map((it) => it.name)]) {
    if (existsSync(`/run/netns/${namespace(name)}`)) {
      ip('netns', 'del', namespace(name));
    }
  }
  if (!flags.data) {
    rmSync(folder, { recursive: true });
  }
}

const stop = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => stop.abort());
}

/** Runs all of it, and says from when to when there is something to see. */
async function run() {
  for (const host of HOSTS) {
    host.roles.forEach((role) => start(host.name, 'python3', path.join(here, 'load.py'), role));
    agent(host);
  }
  const from = Math.floor(Date.now() / 1000);
  await sleep(Number(flags.minutes) * 60_000, undefined, { signal: stop.signal });
  const dead = running.filter((it) => it.exitCode !== null || it.signalCode !== null);
  if (dead.length > 0) {
    throw new Error(`ended too early: ${dead.map((it) => it.spawnargs.slice(2).join(' ')).join('; ')}`);
  }
  return { from, to: Math.floor(Date.now() / 1000) };
}

try {
  mkdirSync(folder, { recursive: true });
  network();
  prometheus();
  const times = path.join(folder, 'time.json');
  if (!flags.again) {
    writeFileSync(times, JSON.stringify(await run()));
  }
  await sleep(2000, undefined, { signal: stop.signal });
  pictures(JSON.parse(readFileSync(times, 'utf8')));
} catch (error) {
  if (!stop.signal.aborted) {
    throw error;
  }
  process.exitCode = 130;
} finally {
  await end();
}

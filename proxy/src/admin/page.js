'use strict';
// Everything that comes from data reaches the document as text (textContent) or as a number in SVG; no markup is ever made of it.

const $ = (id) => document.getElementById(id);
const first = JSON.parse($('first').textContent);
let current = first.snapshot;
let receivedAt = performance.now();
const version = current.version;

// ---- Words and numbers

const NONE = '–';
const known = (value) => value !== null && value !== undefined;
const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;

function count(n) {
  if (!known(n)) return NONE;
  if (Math.abs(n) >= 1e9) return `${(n / 1e9).toFixed(2)} G`;
  return Math.round(n).toLocaleString('en-US');
}
function rate(n) {
  if (!known(n)) return NONE;
  if (n === 0) return '0';
  return n < 9.95 ? n.toFixed(1) : count(n);
}
/// As PostgreSQL counts: a kB is 1024 bytes.
function bytes(n) {
  if (!known(n)) return NONE;
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) { n /= 1024; unit++; }
  return `${unit === 0 || n >= 99.5 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}
function short(seconds) {
  if (!known(seconds)) return NONE;
  const s = Math.abs(seconds), sign = seconds < 0 ? '−' : '';
  if (s === 0) return '0';
  if (s < 0.001) return `${sign}${Math.round(s * 1e6)} µs`;
  if (s < 0.00995) return `${sign}${(s * 1e3).toFixed(1)} ms`;
  if (s < 0.9995) return `${sign}${Math.round(s * 1e3)} ms`;
  if (s < 9.95) return `${sign}${s.toFixed(1)} s`;
  return sign + age(s);
}
function age(seconds) {
  if (!known(seconds)) return NONE;
  const s = Math.floor(seconds), pad = (n) => String(n).padStart(2, '0');
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} m ${pad(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${pad(Math.floor(s / 60) % 60)} m`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}
function clock(unixSeconds) {
  const then = new Date(unixSeconds * 1000), pad = (n) => String(n).padStart(2, '0');
  const time = `${pad(then.getHours())}:${pad(then.getMinutes())}:${pad(then.getSeconds())}`;
  const old = current.at_unix_seconds - unixSeconds > 20 * 3600;
  return old ? `${pad(then.getMonth() + 1)}-${pad(then.getDate())} ${time.slice(0, 5)}` : time;
}
function postgres(version) {
  if (!known(version)) return '';
  return `PG ${Math.floor(version / 10000)}.${version % 10000}`;
}

// ---- Document

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
function attribute(element, name, value) {
  if (!known(value) || value === '') element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) attribute(element, name, value);
  element.append(...children);
  return element;
}
function draw(tag, attributes, text) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes || {})) if (known(value)) element.setAttribute(name, value);
  if (known(text)) element.textContent = text;
  return element;
}

/// Keeps a table's rows in step with data, changing only what changed, so that text can be selected while it updates.
/// A column: {field, label, group, text: row => string, value: row => number, sub, tone, kind}.
function keep(table, columns, rows, key, options = {}) {
  if (!table.tHead) {
    const head = table.createTHead();
    if (columns.some((c) => c.group)) {
      const groups = head.insertRow();
      groups.className = 'groups';
      let last;
      for (const column of columns) {
        if (column.group === undefined && last) { last.colSpan++; continue; }
        last = make('th', {}, column.group || '');
        groups.append(last);
      }
    }
    const names = head.insertRow();
    for (const column of columns) {
      const th = make('th', { title: column.title }, column.label);
      th.className = [column.kind || '', column.group ? 'edge' : ''].join(' ').trim();
      names.append(th);
    }
    table.append(document.createElement('tbody'));
    table.rowsByKey = new Map();
  }
  const body = table.tBodies[0], seen = new Set();
  let place = body.firstChild;
  const follow = (tr) => { if (tr === place) place = tr.nextSibling; else body.insertBefore(tr, place); };
  for (const row of rows) {
    const id = key(row);
    if (seen.has(id)) continue;
    seen.add(id);
    let kept = table.rowsByKey.get(id);
    if (!kept) {
      const tr = document.createElement('tr');
      for (const column of columns) {
        const td = tr.insertCell();
        td.dataset.field = column.field;
        if (options.mark) td.dataset[options.mark] = id;
        if (column.label) td.dataset.label = column.short || column.label;
        td.append(document.createElement('span'));
      }
      kept = { tr };
      table.rowsByKey.set(id, kept);
    }
    columns.forEach((column, index) => {
      const td = kept.tr.cells[index], value = column.value && column.value(row);
      put(td.firstChild, column.text ? column.text(row) : count(value));
      if (column.sub) {
        if (!td.lastChild || td.lastChild === td.firstChild) td.append(document.createElement('small'));
        put(td.lastChild, column.sub(row));
      }
      attribute(td, 'data-value', known(value) ? value : null);
      const tone = column.tone ? column.tone(row) : '';
      const zero = column.value && !value && column.kind !== 'text' ? 'zero' : '';
      td.className = [column.kind || '', column.group ? 'edge' : '', tone || zero].join(' ').trim();
    });
    follow(kept.tr);
    if (options.row) options.row(kept, row, follow);
  }
  for (const [id, kept] of table.rowsByKey) {
    if (seen.has(id)) continue;
    kept.tr.remove();
    if (kept.extra) kept.extra.remove();
    table.rowsByKey.delete(id);
  }
  if (options.empty) {
    if (!table.nothing) { table.nothing = make('p', { class: 'empty quiet' }, options.empty); table.after(table.nothing); }
    table.nothing.hidden = rows.length > 0;
    table.hidden = rows.length === 0;
  }
}

// ---- Sections

const STATUS = {
  leader: ['leads', 'lead'], unconfirmed: ['leader, not confirmed', 'warn'], serving: ['serves reads', 'ok'],
  out: ['out', 'warn'], down: ['down', 'bad'], gone: ['gone', 'faint'],
};
const tone = (m) => (m.out === 'drained' || m.out === 'noloadbalance' ? 'faint' : (STATUS[m.status] || ['', 'faint'])[1]);
function statusWords(m) {
  const [word] = STATUS[m.status] || [m.status];
  if (m.status === 'serving' && m.role === 'sync_standby') return `${word}, sync`;
  if (m.status === 'leader' && m.role === 'standby_leader') return 'leads standbys';
  return m.out && m.status !== 'leader' ? `${word}: ${m.out}` : word;
}
const inOrder = (members) => [...members].sort((a, b) => (b.status === 'leader') - (a.status === 'leader') || (a.status === 'gone') - (b.status === 'gone'));

/// Whether its lag means anything: a leader has none, and what is known of a member that is down is old.
const lags = (m) => m.status === 'serving' || m.status === 'out';
function lagTone(m) {
  if (!lags(m)) return '';
  const { max_lag_bytes: bytesMax, max_lag_seconds: secondsMax } = current.settings;
  const part = Math.max((m.lag_bytes || 0) / bytesMax, secondsMax ? (m.lag_seconds || 0) / secondsMax : 0);
  return part > 1 ? 'bad' : part > 0.5 ? 'warn' : '';
}
const alarm = (value, tone) => (row) => (value(row) > 0 ? tone : '');

const MEMBER_COLUMNS = [
  { field: 'name', label: 'Member', kind: 'text', text: (m) => m.name, sub: (m) => (m.port ? `${m.host}:${m.port}` : '') },
  { field: 'status', label: 'State', kind: 'text', text: statusWords, sub: (m) => [m.patroni_state, postgres(m.server_version_num)].filter(Boolean).join(', ') },
  { field: 'since', label: 'Since', value: (m) => m.since_seconds, text: (m) => age(m.since_seconds), title: 'How long probes have succeeded, or failed, without a break' },
  { field: 'reads_per_second', label: 'reads', short: 'reads/s', group: 'Per second', value: (m) => m.rates && m.rates.reads, text: (m) => rate(m.rates && m.rates.reads) },
  { field: 'writes_per_second', label: 'writes', short: 'writes/s', value: (m) => m.rates && m.rates.writes, text: (m) => rate(m.rates && m.rates.writes) },
  { field: 'response', label: 'response', value: (m) => m.response_seconds, text: (m) => short(m.response_seconds), title: 'Smoothed response time' },
  { field: 'reads', label: 'reads', group: 'Total', value: (m) => m.reads },
  { field: 'writes', label: 'writes', value: (m) => m.writes },
  { field: 'errors', label: 'errors', value: (m) => m.errors },
  { field: 'in_use', label: 'in use', group: 'Connections', value: (m) => m.in_use, title: 'Leased to clients right now' },
  { field: 'connections', label: 'open', short: 'connections', value: (m) => m.connections },
  { field: 'connections_highest', label: 'max', value: (m) => m.connections_highest },
  { field: 'connections_total', label: 'total', value: (m) => m.connections_total },
  { field: 'connect_errors', label: 'failed', value: (m) => m.connect_errors, tone: alarm((m) => m.connect_errors, 'warn') },
  { field: 'waiting', label: 'waiting', value: (m) => m.waiting, tone: alarm((m) => m.waiting, 'warn'), title: 'Clients that wait for a connection' },
  { field: 'bytes_out', label: 'in', short: 'bytes in', group: 'Bytes', value: (m) => m.bytes_out, text: (m) => bytes(m.bytes_out), title: 'From clients to this member' },
  { field: 'bytes_in', label: 'out', short: 'bytes out', value: (m) => m.bytes_in, text: (m) => bytes(m.bytes_in), title: 'From this member to clients' },
  { field: 'lag_bytes', label: 'lag', group: 'Replication', value: (m) => (lags(m) ? m.lag_bytes : null), text: (m) => (lags(m) ? bytes(m.lag_bytes) : NONE), tone: lagTone },
  { field: 'lag_seconds', label: 'behind', value: (m) => (lags(m) ? m.lag_seconds : null), text: (m) => (lags(m) ? short(m.lag_seconds) : NONE), tone: lagTone },
  { field: 'timeline', label: 'line', short: 'timeline', title: 'Timeline', value: (m) => m.timeline, tone: (m) => (known(m.timeline) && known(current.cluster.timeline) && m.timeline !== current.cluster.timeline ? 'warn' : '') },
  { field: 'check', label: 'probe', kind: 'text', value: (m) => m.check.round_trip_seconds, text: (m) => (m.status === 'gone' ? NONE : m.check.ok ? `ok, ${short(m.check.round_trip_seconds)}` : m.check.error ? 'failed' : 'not yet'), tone: (m) => (m.check.error ? 'bad' : ''), title: 'The last probe, and its round trip' },
];

function showMembers(s) {
  keep($('members'), MEMBER_COLUMNS, inOrder(s.members), (m) => m.name, {
    mark: 'member',
    empty: 'No member is known yet.',
    row: (kept, m, follow) => {
      attribute(kept.tr, 'data-tone', tone(m));
      kept.tr.classList.toggle('has-error', Boolean(m.check.error));
      if (m.check.error && !kept.extra) {
        kept.extra = make('tr', { class: 'error' }, make('td', { class: 'wrap', colspan: MEMBER_COLUMNS.length, 'data-member': m.name, 'data-field': 'check_error' }));
      }
      if (!kept.extra) return;
      kept.extra.hidden = !m.check.error;
      const ago = known(m.check.age_seconds) ? ` (last answer ${age(m.check.age_seconds)} ago)` : ' (has never answered)';
      put(kept.extra.firstChild, m.check.error ? `Probe: ${m.check.error}${ago}` : '');
      follow(kept.extra);
    },
  });
  put($('members-note'), s.members_omitted ? `${plural(s.members_omitted, 'member', 'members')} not shown.` : '');
}

const PORT_NAMES = { read_write: 'read/write', read_only: 'read-only' };
const portNumber = (port) => { const parts = (port.addresses[0] || '').split(':'); return parts.length > 1 ? parts[parts.length - 1] : ''; };
const PORT_COLUMNS = [
  { field: 'name', label: 'Port', kind: 'text', text: (p) => `${portNumber(p)} ${PORT_NAMES[p.name] || p.name}`.trim(), sub: (p) => p.addresses.join(', ') },
  { field: 'clients', label: 'now', short: 'clients', group: 'Clients', value: (p) => p.clients },
  { field: 'clients_highest', label: 'max', value: (p) => p.clients_highest },
  { field: 'clients_total', label: 'total', value: (p) => p.clients_total },
  { field: 'logins_failed', label: 'logins failed', value: (p) => p.logins_failed },
  { field: 'queries', label: 'batches', group: 'Statements', value: (p) => p.queries },
  { field: 'errors', label: 'errors', value: (p) => p.errors },
  { field: 'bytes_in', label: 'in', short: 'bytes in', group: 'Bytes', value: (p) => p.bytes_in, text: (p) => bytes(p.bytes_in) },
  { field: 'bytes_out', label: 'out', short: 'bytes out', value: (p) => p.bytes_out, text: (p) => bytes(p.bytes_out) },
];

const POOL_COLUMNS = [
  { field: 'node', label: 'Member', kind: 'text', text: (p) => p.node },
  { field: 'database', label: 'Database', kind: 'text', text: (p) => p.database },
  { field: 'user', label: 'User', kind: 'text', text: (p) => p.user },
  { field: 'idle', label: 'idle', value: (p) => p.idle },
  { field: 'in_use', label: 'in use', value: (p) => p.in_use },
  { field: 'waiting', label: 'waiting', value: (p) => p.waiting, tone: alarm((p) => p.waiting, 'warn') },
  { field: 'waiting_highest', label: 'waiting, max', value: (p) => p.waiting_highest },
  { field: 'waits', label: 'waits', value: (p) => p.waits },
  { field: 'wait_average', label: 'average wait', value: (p) => (p.waits ? p.wait_seconds_total / p.waits : null), text: (p) => (p.waits ? short(p.wait_seconds_total / p.waits) : NONE) },
];
const PIN_COLUMNS = [
  { field: 'client', label: 'Client', kind: 'text', text: (p) => String(p.client) },
  { field: 'user', label: 'User', kind: 'text', text: (p) => p.user },
  { field: 'database', label: 'Database', kind: 'text', text: (p) => p.database },
  { field: 'node', label: 'Member', kind: 'text', text: (p) => p.node },
  { field: 'reasons', label: 'Because of', kind: 'text', text: (p) => p.reasons.join(', ') },
  { field: 'for', label: 'For', value: (p) => p.seconds, text: (p) => age(p.seconds) },
];
const STATEMENT_COLUMNS = [
  { field: 'statement', label: 'Statement', kind: 'wrap', text: (r) => r.statement },
  { field: 'times', label: 'Times', value: (r) => r.times, text: (r) => count(r.times) },
  { field: 'leader', label: 'Leader', value: (r) => r.leader, text: (r) => count(r.leader) },
  { field: 'replica', label: 'Replica', value: (r) => r.replica, text: (r) => count(r.replica) },
  { field: 'mean', label: 'Mean, ms', value: (r) => r.mean_seconds ?? 0, text: (r) => (r.mean_seconds === null ? '' : (r.mean_seconds * 1000).toFixed(2)) },
  { field: 'why', label: 'Because', kind: 'wrap', text: (r) => Object.keys(r.routes).join(', ') },
  { field: 'fingerprint', label: 'Fingerprint', kind: 'text', text: (r) => r.fingerprint },
];
const UNFORESEEN_COLUMNS = [
  { field: 'statement', label: 'Statement', kind: 'wrap', text: (r) => r.statement },
  { field: 'sqlstate', label: 'SQLSTATE', kind: 'text', text: (r) => r.sqlstate },
  { field: 'times', label: 'Times', value: (r) => r.times, text: (r) => count(r.times) },
  { field: 'fingerprint', label: 'Fingerprint', kind: 'text', text: (r) => r.fingerprint },
];
const poolKey = (p) => JSON.stringify([p.node, p.database, p.user]);
const busiestFirst = (pools) => [...pools].sort((a, b) => b.waiting - a.waiting || b.in_use - a.in_use);

function showWords(id, label, words, empty) {
  const rows = Object.entries(words).sort((a, b) => b[1] - a[1]);
  keep($(id), [
    { field: 'word', label, kind: 'wrap', text: (r) => r[0] },
    { field: 'count', label: 'times', value: (r) => r[1] },
  ], rows, (r) => r[0], { mark: 'word', empty });
}

function showList(list, items, empty) {
  const same = JSON.stringify(items);
  if (list.shown === same) return;
  list.shown = same;
  list.replaceChildren(...items.map(({ at, strong, text, small, bad }) => {
    const words = make('span');
    if (strong) words.append(make('b', {}, strong), ' ');
    if (text) words.append(text, ' ');
    if (small) words.append(make('small', {}, small));
    return make('li', { class: bad ? 'bad' : '' }, make('time', {}, at), words);
  }));
  if (!items.length) list.append(make('li', { class: 'empty' }, empty));
}

function showChanges(s) {
  const items = s.changes.map((change, index) => {
    const before = s.changes[index + 1];
    const gap = change.leader && before && !before.leader ? `after ${short(change.at_unix_seconds - before.at_unix_seconds)} without a leader` : '';
    const timeline = known(change.timeline) ? `timeline ${change.timeline}` : '';
    return {
      at: clock(change.at_unix_seconds), bad: !change.leader, strong: change.leader ? `${change.leader} leads` : 'No leader',
      small: [timeline, gap, change.reason].filter(Boolean).join(' · '),
    };
  });
  showList($('changes'), items, 'None since the router started.');
}

function showFigures(s) {
  const total = (rows, field) => rows.reduce((sum, row) => sum + row[field], 0);
  put($('reads-per-second'), rate(s.traffic.reads_per_second));
  put($('writes-per-second'), rate(s.traffic.writes_per_second));
  const latency = s.traffic.latency;
  put($('latency-p50'), latency ? short(latency.p50_seconds) : NONE);
  put($('latency-rest'), latency ? `median; 95 % ${short(latency.p95_seconds)}, 99 % ${short(latency.p99_seconds)}` : 'no statement in the last 10 s');
  const clients = total(s.ports, 'clients');
  put($('clients'), count(clients));
  $('clients').className = clients > 0.9 * s.settings.max_clients ? 'warn' : '';
  put($('clients-rest'), `at most ${count(s.settings.max_clients)}; ${count(total(s.ports, 'clients_total'))} ever`);
  const waiting = total(s.pools, 'waiting');
  put($('waiting'), count(waiting));
  $('waiting').className = waiting > 0 ? 'warn' : '';
  put($('waiting-rest'), `${plural(total(s.members, 'in_use'), 'connection', 'connections')} in use, ${count(total(s.members, 'connections'))} open`);
  put($('held'), count(s.held.now));
  $('held').className = s.held.now > 0 ? 'bad' : '';
  put($('held-rest'), `max ${count(s.held.highest)}; ${count(s.held.total)} ever, ${count(s.held.timeouts)} timed out`);
  put($('pinned-count'), count(s.pinned_count));
  put($('pinned-rest'), s.pinned.length ? `longest ${age(s.pinned[0].seconds)}` : 'none');
}

function showSettings(s) {
  const t = s.settings, hits = s.verdicts.hits, all = hits + s.verdicts.misses;
  const pairs = [
    ['Pooling', t.pool_mode], ['Connections per pool', count(t.pool_max_size)], ['Connections per member', count(t.pool_max_per_node)],
    ['Lag limit', `${bytes(t.max_lag_bytes)}${t.max_lag_seconds ? `, ${short(t.max_lag_seconds)}` : ''}`],
    ['Writes wait for a leader', `up to ${short(t.hold_timeout_seconds)}`], ['Writes that may wait', count(t.hold_max)],
    ['Consistency, read/write', t.consistency_read_write], ['Consistency, read-only', t.consistency_read_only],
    ['Read-only falls back to leader', t.fallback_to_leader ? 'yes' : 'no'],
    ['Verdicts from the cache', all ? `${(100 * hits / all).toFixed(1)} %` : NONE], ['Verdicts cached', count(s.verdicts.cached)],
    ['Cancel requests', count(s.cancels)], ['Reads, total', count(s.traffic.reads)], ['Writes, total', count(s.traffic.writes)],
    ['Server errors, total', count(s.traffic.errors)], ['Epoch', count(s.cluster.epoch)],
  ];
  const list = $('settings');
  if (!list.firstChild) list.append(...pairs.map(([name]) => make('div', { 'data-setting': name }, make('dt', {}, name), make('dd'))));
  pairs.forEach(([, value], index) => put(list.children[index].lastChild, value));
}

// ---- Curves: the last five minutes

const SPAN = 300;
let past = first.past.map((p) => ({ at: current.at_unix_seconds - p.ago, reads: p.reads, writes: p.writes, held: p.held, lags: p.lags }));

/// By name, of the replicas whose lag is known.
const lagsOf = (s) => Object.fromEntries(s.members.filter((m) => lags(m) && known(m.lag_bytes)).map((m) => [m.name, m.lag_bytes]));

function remember(s) {
  const last = past[past.length - 1];
  if (known(s.traffic.reads_per_second) && (!last || s.at_unix_seconds - last.at > 0.9)) {
    past.push({ at: s.at_unix_seconds, reads: s.traffic.reads_per_second, writes: s.traffic.writes_per_second, held: s.held.now, lags: lagsOf(s) });
  }
  past = past.filter((p) => p.at > s.at_unix_seconds - SPAN);
}

function showCurve(svg, field) {
  const box = svg.getBoundingClientRect(), style = getComputedStyle(svg);
  const width = Math.max(60, box.width - parseFloat(style.paddingLeft)), height = 48;
  const span = Math.min(SPAN, Math.max(30, past.length ? current.at_unix_seconds - past[0].at : 0));
  const highest = Math.max(1, ...past.map((p) => p[field]));
  const x = (p) => width - (current.at_unix_seconds - p.at) * width / span;
  const y = (p) => height - 2 - p[field] / highest * (height - 14);
  const points = past.map((p) => `${x(p).toFixed(1)},${y(p).toFixed(1)}`);
  const shapes = [];
  if (points.length > 1) {
    shapes.push(draw('polygon', { class: 'area', points: `${x(past[0]).toFixed(1)},${height} ${points.join(' ')} ${x(past[past.length - 1]).toFixed(1)},${height}` }));
    shapes.push(draw('polyline', { class: 'curve', points: points.join(' ') }));
    for (const p of past) if (p.held > 0) shapes.push(draw('rect', { class: 'mark', x: x(p).toFixed(1), y: height - 2, width: Math.max(1, width / span), height: 3 }));
    shapes.push(draw('text', { class: 'tick', x: width, y: 8, 'text-anchor': 'end' }, `last ${span > SPAN - 5 ? '5 min' : age(span)}, max ${rate(Math.max(...past.map((p) => p[field])))}`));
  }
  svg.replaceChildren(...shapes);
}

/// A line for each replica, and the limit. By square roots: what is usual is far below the limit, and both are to be seen.
function showLags(svg) {
  const box = svg.getBoundingClientRect(), style = getComputedStyle(svg);
  const width = Math.max(60, box.width - parseFloat(style.paddingLeft)), height = 48;
  const span = Math.min(SPAN, Math.max(30, past.length ? current.at_unix_seconds - past[0].at : 0));
  const limit = current.settings.max_lag_bytes;
  const seen = past.flatMap((p) => Object.values(p.lags));
  const highest = Math.max(1, limit, ...seen);
  const x = (p) => width - (current.at_unix_seconds - p.at) * width / span;
  const y = (lag) => height - 2 - Math.sqrt(lag / highest) * (height - 14);
  const shapes = [draw('line', { class: 'limit', x1: 0, x2: width, y1: y(limit), y2: y(limit) })];
  for (const name of new Set(past.flatMap((p) => Object.keys(p.lags)))) {
    const points = past.filter((p) => known(p.lags[name])).map((p) => `${x(p).toFixed(1)},${y(p.lags[name]).toFixed(1)}`);
    if (points.length > 1) shapes.push(draw('polyline', { class: 'curve', 'data-lag': name, points: points.join(' ') }));
  }
  shapes.push(draw('text', { class: 'tick', x: width, y: 8, 'text-anchor': 'end' }, `limit ${bytes(limit)}, max ${bytes(Math.max(0, ...seen))}`));
  svg.replaceChildren(...shapes);
  const now = Object.values(lagsOf(current));
  put($('lag-now'), now.length ? bytes(Math.max(...now)) : NONE);
}

// ---- The picture

function clip(text, length) { return text.length > length ? `${text.slice(0, length - 1)}…` : text; }
const thickness = (perSecond) => (known(perSecond) && perSecond > 0 ? 1.25 + Math.min(5, Math.log10(1 + perSecond) * 1.3) : 1);
const TONES = { lead: 'lead', ok: 'ok', warn: 'warn', bad: 'bad', faint: 'faint' };

function memberBox(s, m, x, y, width, height, narrow) {
  const group = draw('g', { 'data-picture': m.name }), color = TONES[tone(m)];
  group.append(draw('title', {}, `${m.name} ${m.host}:${m.port}`));
  group.append(draw('rect', { class: 'box', x: x + 0.5, y: y + 0.5, width: width - 1, height: height - 1 }));
  group.append(draw('rect', { class: color, x, y, width: 4, height }));
  group.append(draw('text', { class: 'name', x: x + 14, y: y + 18 }, clip(m.name, narrow ? 18 : 26)));
  group.append(draw('text', { class: `rate ${color}`, x: x + width - 10, y: y + 18, 'text-anchor': 'end', 'data-field': 'status' }, statusWords(m)));
  const facts = m.status === 'leader'
    ? [known(m.timeline) ? `timeline ${m.timeline}` : '', m.lsn ? `WAL at ${m.lsn}` : '']
    : m.status === 'down'
      ? [m.patroni_state, known(m.since_seconds) ? `for ${age(m.since_seconds)}` : '']
      : [known(m.lag_bytes) ? `${bytes(m.lag_bytes)} behind` : 'lag unknown', known(m.lag_seconds) && m.lag_seconds > 0 ? short(m.lag_seconds) : ''];
  group.append(draw('text', { class: 'small', x: x + 14, y: y + 35, 'data-field': 'facts' }, facts.filter(Boolean).join(', ')));
  const rates = m.rates || {};
  const work = narrow ? `${rate(rates.reads)} r/s${m.status === 'leader' ? `, ${rate(rates.writes)} w/s` : ''}` : `${count(m.in_use)} of ${plural(m.connections, 'connection', 'connections')} in use`;
  group.append(draw('text', { class: 'small', x: x + width - 10, y: y + 35, 'text-anchor': 'end' }, work));
  if (known(m.lag_bytes) && lags(m) && s.settings.max_lag_bytes > 0) {
    const part = Math.min(1, m.lag_bytes / s.settings.max_lag_bytes);
    group.append(draw('rect', { class: 'track', x: x + 14, y: y + height - 6, width: width - 24, height: 2 }));
    group.append(draw('rect', { class: lagTone(m) || 'ok', x: x + 14, y: y + height - 6, width: Math.max(part > 0 ? 2 : 0, (width - 24) * part), height: 2 }));
  }
  return group;
}

function portBox(p, x, y, width) {
  const group = draw('g', { 'data-picture-port': p.name });
  group.append(draw('rect', { class: 'box', x: x + 0.5, y: y + 0.5, width: width - 1, height: 43 }));
  group.append(draw('text', { class: 'name', x: x + 12, y: y + 18 }, plural(p.clients, 'client', 'clients')));
  group.append(draw('text', { class: 'small', x: x + 12, y: y + 34 }, `${PORT_NAMES[p.name] || p.name} ${portNumber(p)}`));
  return group;
}

function routerBox(s, x, y, width, height) {
  const group = draw('g', {}), middle = x + width / 2, center = y + height / 2;
  group.append(draw('rect', { class: 'router', x: x + 0.5, y: y + 0.5, width: width - 1, height: height - 1 }));
  group.append(draw('text', { class: 'name', x: middle, y: center - 4, 'text-anchor': 'middle' }, 'Switchyard'));
  const line = s.held.now > 0 ? `${s.held.now === 1 ? '1 write waits' : `${count(s.held.now)} writes wait`}` : `${rate(s.traffic.queries_per_second)} batches/s`;
  group.append(draw('text', { class: `small${s.held.now > 0 ? ' bad' : ''}`, x: middle, y: center + 13, 'text-anchor': 'middle', 'data-field': 'router' }, line));
  return group;
}

function edge(path, kind, perSecond) {
  return draw('path', { class: kind, d: path, 'stroke-width': kind === 'none' ? 1 : thickness(perSecond).toFixed(2) });
}

function showPicture(s) {
  const svg = $('map'), width = Math.max(300, Math.floor(svg.parentNode.getBoundingClientRect().width));
  const members = inOrder(s.members).filter((m) => m.status !== 'gone').slice(0, 16);
  const narrow = width < 700, shapes = [];
  const served = (m) => m.status === 'leader' || m.status === 'serving';
  let height;
  if (narrow) {
    const half = (width - 10) / 2, step = 60;
    s.ports.forEach((p, index) => {
      const x = index * (half + 10);
      shapes.push(edge(`M${x + half / 2},44 V64`, p.clients > 0 ? 'trunk' : 'none', p.clients), portBox(p, x, 0, half));
    });
    height = 122 + members.length * step;
    if (members.length) shapes.push(edge(`M8,114 V${122 + (members.length - 1) * step + 25}`, 'trunk', 0));
    members.forEach((m, index) => {
      const y = 122 + index * step, middle = y + 25, rates = m.rates || {};
      const both = (rates.reads || 0) + (rates.writes || 0);
      const kind = !served(m) || both === 0 ? 'none' : m.status === 'leader' ? 'writes' : 'reads';
      shapes.push(edge(`M8,${middle} H24`, kind, both), memberBox(s, m, 24, y, width - 24, 50, true));
    });
    // Later lines would cover the router's box.
    shapes.push(routerBox(s, 0, 64, width, 50));
  } else {
    const step = 62, boxWidth = Math.min(400, width * 0.36), boxX = width - boxWidth, portWidth = Math.min(190, width * 0.17);
    const routerWidth = 150, routerX = portWidth + Math.max(40, width * 0.06);
    height = Math.max(130, members.length * step - 10);
    const routerHeight = Math.max(80, Math.min(height, 140)), routerY = (height - routerHeight) / 2;
    s.ports.forEach((p, index) => {
      const y = height / 2 + (index === 0 ? -58 : 14);
      shapes.push(edge(`M${portWidth},${y + 22} H${routerX}`, p.clients > 0 ? 'trunk' : 'none', p.clients), portBox(p, 0, y, portWidth));
    });
    const from = routerX + routerWidth, bend = (boxX - from) * 0.42;
    members.forEach((m, index) => {
      const y = index * step, middle = y + 26, rates = m.rates || {};
      const start = routerY + routerHeight * (index + 1) / (members.length + 1);
      const curve = (offset) => `M${from},${start + offset} C${from + bend},${start + offset} ${from + bend * 0.7},${middle + offset} ${from + bend + 20},${middle + offset} H${boxX}`;
      const labels = [];
      if (m.status === 'leader') {
        shapes.push(edge(curve(-6), rates.writes > 0 ? 'writes' : 'none', rates.writes), edge(curve(6), rates.reads > 0 ? 'reads' : 'none', rates.reads));
        labels.push([`${rate(rates.writes)} writes/s`, middle - 12], [`${rate(rates.reads)} reads/s`, middle + 20]);
      } else {
        shapes.push(edge(curve(0), served(m) && rates.reads > 0 ? 'reads' : s.held.now > 0 && m.status === 'unconfirmed' ? 'held' : 'none', rates.reads));
        if (served(m)) labels.push([`${rate(rates.reads)} reads/s`, middle - 7]);
        else labels.push(['no reads', middle - 7]);
      }
      for (const [text, at] of labels) shapes.push(draw('text', { class: 'small', x: boxX - 12, y: at, 'text-anchor': 'end' }, text));
      shapes.push(memberBox(s, m, boxX, y, boxWidth, 52, false));
    });
    shapes.push(routerBox(s, routerX, routerY, routerWidth, routerHeight));
  }
  attribute(svg, 'viewBox', `0 0 ${width} ${height}`);
  attribute(svg, 'height', height);
  attribute(svg, 'aria-label', `${s.cluster.summary}. ${members.map((m) => `${m.name} ${statusWords(m)}`).join(', ')}`);
  svg.replaceChildren(...shapes);
}

// ---- All of it

function show(s) {
  current = s;
  remember(s);
  put($('cluster-name'), s.cluster.name);
  put($('about'), `${s.version}, up ${age(s.uptime_seconds)}`);
  attribute($('banner'), 'data-level', s.cluster.level);
  attribute($('banner'), 'data-state', s.cluster.state);
  put($('state'), s.cluster.state + (known(s.cluster.state_seconds) ? ` for ${age(s.cluster.state_seconds)}` : ''));
  put($('summary'), s.cluster.summary);
  put($('warning'), s.not_ready ? `Not ready for clients: ${s.not_ready}` : '');
  $('warning').hidden = !s.not_ready;
  const title = `${s.cluster.leader ? s.cluster.leader : 'no leader'} · ${s.cluster.name} · Switchyard`;
  document.title = s.cluster.level === 'ok' ? title : `${s.cluster.level === 'bad' ? '✕' : '!'} ${title}`;
  const color = { ok: '1b7a3d', warn: 'c77700', bad: 'c4232c' }[s.cluster.level];
  attribute($('icon'), 'href', `data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E%3Crect width='8' height='8' fill='%23${color}'/%3E%3C/svg%3E`);
  showFigures(s);
  showMembers(s);
  keep($('ports'), PORT_COLUMNS, s.ports, (p) => p.name, { mark: 'port' });
  keep($('pools'), POOL_COLUMNS, busiestFirst(s.pools), poolKey, { mark: 'pool', empty: 'No pool yet: the first login opens one.' });
  put($('pools-note'), s.pools_omitted ? `Rows “(others)” stand for ${plural(s.pools_omitted, 'further pool', 'further pools')}.` : '');
  keep($('pinned'), PIN_COLUMNS, s.pinned, (p) => String(p.client), { mark: 'client', empty: 'None: every session shares its server connections.' });
  put($('pinned-note'), s.pinned_count > s.pinned.length ? `${count(s.pinned_count - s.pinned.length)} more are not listed.` : '');
  keep($('statements'), STATEMENT_COLUMNS, s.statements, (r) => r.fingerprint, { mark: 'statement', empty: 'None yet.' });
  keep($('unforeseen'), UNFORESEEN_COLUMNS, s.unforeseen, (r) => r.fingerprint, { mark: 'statement', empty: 'None: every read was one.' });
  showWords('leader-reads', 'Reason', s.leader_reads, 'None.');
  showWords('reruns', 'SQLSTATE', s.reruns, 'None.');
  showWords('refusals', 'SQLSTATE', s.refusals, 'None.');
  showChanges(s);
  showList($('events'), s.events.map((e) => ({ at: clock(e.at_unix_seconds), text: e.text })), 'None since the router started.');
  showSettings(s);
  showDrawings();
}
function showDrawings() {
  showCurve($('reads-curve'), 'reads');
  showCurve($('writes-curve'), 'writes');
  showLags($('lag-curve'));
  showPicture(current);
}

// ---- Live

let source = null, live = false;

function showConnection() {
  const seconds = (performance.now() - receivedAt) / 1000, stale = live ? seconds > 4 : seconds > 2;
  const connection = $('connection');
  document.body.classList.toggle('stale', stale);
  attribute(connection, 'data-state', stale ? 'stale' : live ? 'live' : 'embedded');
  put(connection, stale ? `Disconnected: numbers are ${age(seconds)} old` : live ? 'live' : 'connecting');
}

function connect() {
  source = new EventSource('/stats/events');
  source.addEventListener('snapshot', (event) => {
    const snapshot = JSON.parse(event.data);
    // A new router may come with a new page.
    if (snapshot.version !== version) return location.reload();
    receivedAt = performance.now();
    live = true;
    show(snapshot);
    showConnection();
  });
  source.addEventListener('error', () => {
    live = false;
    // The browser tries again by itself, unless the answer was no stream.
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(connect, 2000);
  });
}

show(current);
showConnection();
setInterval(showConnection, 500);
addEventListener('resize', showDrawings);
connect();

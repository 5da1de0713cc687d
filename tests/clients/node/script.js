// node-postgres and its companions: what an application does with them. Everything that it prints is compared.
'use strict';

const { pipeline } = require('node:stream/promises');
const { Readable, Writable } = require('node:stream');
const { setTimeout: pause } = require('node:timers/promises');
const { Client, Pool } = require('pg');
const Cursor = require('pg-cursor');
const QueryStream = require('pg-query-stream');
const { from: copyFrom, to: copyTo } = require('pg-copy-streams');

const connectionString = process.argv[2];
const show = (what, ...values) => console.log(what, ...values.map((value) => JSON.stringify(value)));

async function fails(what, work) {
  try {
    await work;
    console.log(what, "didn't fail");
  } catch (error) {
    show(what, error.code ?? error.message, error.severity, error.message, error.detail, error.hint, error.position, error.constraint, error.routine);
  }
}

async function basics(client) {
  await client.query('CREATE TABLE thing (id serial PRIMARY KEY, name text UNIQUE, price numeric, extra jsonb)');
  const inserted = await client.query('INSERT INTO thing (name, price, extra) VALUES ($1, $2, $3) RETURNING *', ['pen', '1.50', { a: [1, null] }]);
  show('inserted', inserted.command, inserted.rowCount, inserted.rows, inserted.fields.map((field) => [field.name, field.dataTypeID, field.format]));
  show('several', (await client.query("SELECT 1 AS a; INSERT INTO thing (name) VALUES ('ink'); SELECT count(*) FROM thing")).map((result) => [result.command, result.rows]));
  show('arrays', (await client.query({ text: 'SELECT id, name FROM thing ORDER BY id', rowMode: 'array' })).rows);
  show('empty', (await client.query('')).rows);
  show('binary', (await client.query({ text: 'SELECT $1::int4 AS n, $2::bool AS b', values: [7, true], binary: true })).rows);
}

async function types(client) {
  for (const [value, name] of [
    [true, 'bool'], [-32768, 'int2'], [2147483647, 'int4'], ['-9223372036854775808', 'int8'], ['1.000000001', 'numeric'], [1.5, 'float8'],
    ['\u2603', 'text'], [Buffer.from([0, 255, 92]), 'bytea'], ['1582-10-15', 'date'], [new Date(Date.UTC(2024, 1, 29)), 'timestamptz'],
    ['3 days 00:00:07', 'interval'], ['12345678-1234-5678-1234-567812345678', 'uuid'], [[1, null, 3], 'int[]'], [[['a', 'b,'], ['c"', 'd\\']], 'text[]'],
    [[], 'int[]'], [{ k: 'v' }, 'jsonb'], [null, 'text'], ['[1,10)', 'int4range'], ['(1,2)', 'point'], ['192.168.0.1/24', 'inet'],
  ]) {
    const result = await client.query(`SELECT $1::${name} AS value, ($1::${name})::text AS text`, [value]);
    show(name, result.rows[0], result.fields[0].dataTypeID);
  }
}

async function prepared(client) {
  const statement = { name: 'by-name', text: 'SELECT id, name FROM thing WHERE name = $1' };
  for (const name of ['pen', 'ink', 'none', 'pen']) show('named', (await client.query({ ...statement, values: [name] })).rows);
  await fails('other text', client.query({ ...statement, text: 'SELECT 1', values: [] }));
  show('statements', (await client.query('SELECT name, statement, from_sql FROM pg_prepared_statements')).rows);
  await fails('wrong', client.query({ name: 'bad', text: 'SELECT nothing FROM thing WHERE id = $1', values: [1] }));
  await fails('bad value', client.query({ name: 'number', text: 'SELECT $1::int + 1 AS next', values: ['x'] }));
  show('good value', (await client.query({ name: 'number', text: 'SELECT $1::int + 1 AS next', values: [41] })).rows);
  await client.query('CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)');
  const all = { name: 'all', text: 'SELECT * FROM changing' };
  show('before', (await client.query(all)).rows);
  await client.query("ALTER TABLE changing ADD COLUMN b text DEFAULT 'new'");
  await fails('cached plan', client.query(all));
  await client.query('SELECT 1');
  // Without waiting in between: the client queues them.
  show('queued', (await Promise.all([1, 2, 3, 4].map((n) => client.query({ name: 'double', text: 'SELECT $1::int * 2 AS twice', values: [n] })))).map((r) => r.rows[0].twice));
}

async function transactions(client) {
  await client.query('BEGIN');
  await client.query("INSERT INTO thing (name) VALUES ('outer')");
  await client.query('SAVEPOINT one');
  await fails('unique', client.query("INSERT INTO thing (name) VALUES ('outer')"));
  await fails('failed', client.query('SELECT 1'));
  await client.query('ROLLBACK TO SAVEPOINT one');
  show('inside', (await client.query('SELECT count(*) FROM thing')).rows);
  show('commit', (await client.query('COMMIT')).command);
  await client.query('BEGIN');
  await fails('division', client.query('SELECT 1 / $1::int', [0]));
  show('commit of a failed one', (await client.query('COMMIT')).command);
  await client.query('BEGIN READ ONLY');
  show('read', (await client.query('SELECT name FROM thing ORDER BY id')).rows);
  await fails('read only', client.query('DELETE FROM thing'));
  await client.query('ROLLBACK');
  await client.query('BEGIN ISOLATION LEVEL SERIALIZABLE');
  show('level', (await client.query('SHOW transaction_isolation')).rows);
  await client.query('COMMIT');
}

async function cursors(client) {
  const cursor = client.query(new Cursor('SELECT g FROM generate_series(1, $1::int) g', [25]));
  show('read', (await cursor.read(10)).length, (await cursor.read(10)).map((row) => row.g), (await cursor.read(10)).length, (await cursor.read(10)).length);
  await cursor.close();
  const half = client.query(new Cursor('SELECT g FROM generate_series(1, 1000) g'));
  show('part', (await half.read(3)).map((row) => row.g));
  await half.close();
  await fails('bad', client.query(new Cursor('SELECT 1 / (3 - g) FROM generate_series(1, 5) g')).read(10));
  let sum = 0;
  for await (const row of client.query(new QueryStream('SELECT g FROM generate_series(1, 1234) g', [], { batchSize: 100 }))) sum += row.g;
  show('streamed', sum);
  show('it lives', (await client.query('SELECT 1 AS one')).rows);
}

async function copies(client) {
  await client.query('CREATE TABLE copied (a int, b text)');
  const lines = Array.from({ length: 3000 }, (_, n) => `${n}\t${n % 7 ? `line ${n}` : '\\N'}\n`);
  const sink = client.query(copyFrom('COPY copied FROM STDIN'));
  await pipeline(Readable.from(lines), sink);
  show('copied', sink.rowCount, (await client.query('SELECT count(*), count(b), sum(a) FROM copied')).rows);
  let text = '';
  const collect = () => new Writable({ write(chunk, _, done) { text += chunk; done(); } });
  await pipeline(client.query(copyTo('COPY (SELECT * FROM copied ORDER BY a LIMIT 9) TO STDOUT WITH (FORMAT csv, HEADER)')), collect());
  show('csv', text);
  await fails('bad line', pipeline(Readable.from(['1\tone\n', 'two\t2\n']), client.query(copyFrom('COPY copied FROM STDIN'))));
  await fails('no table', pipeline(Readable.from(['1\n']), client.query(copyFrom('COPY nowhere FROM STDIN'))));
  show('counted', (await client.query('SELECT count(*) FROM copied')).rows);
}

async function notices(client) {
  const heard = [];
  const waiters = [];
  client.on('notice', (notice) => show('notice', notice.severity, notice.code, notice.message));
  client.on('notification', ({ processId, channel, payload }) => { heard.push([processId === client.processID, channel, payload]); waiters.splice(0).forEach((wake) => wake()); });
  const arrived = async (count) => { while (heard.length < count) await new Promise((wake) => waiters.push(wake)); };
  await client.query("DO $$BEGIN RAISE NOTICE 'hello'; RAISE WARNING 'careful'; END$$");
  await client.query('DROP TABLE IF EXISTS nowhere');
  await client.query('COMMIT');
  await client.query('LISTEN news');
  await client.query("NOTIFY news, 'mine'");
  const other = new Client({ connectionString });
  await other.connect();
  await other.query('SELECT pg_notify($1, $2)', ['news', 'theirs']);
  await arrived(2);
  await other.end();
  show('heard', heard);
  await client.query('UNLISTEN news');
}

async function interruptions(client) {
  const running = new Client({ connectionString });
  await running.connect();
  const query = fails('canceled', running.query('SELECT pg_sleep(30)'));
  await pause(300);
  const canceller = new Client({ connectionString });
  await new Promise((done) => { canceller.connection.on('end', done); canceller.connection.on('error', done); canceller.connection.on('connect', () => canceller.connection.cancel(running.processID, running.secretKey)); canceller.connection.connect(canceller.port, canceller.host); });
  await query;
  show('it lives', (await running.query('SELECT 1 AS one')).rows);
  await running.query("SET statement_timeout = '100ms'");
  await fails('timeout', running.query('SELECT pg_sleep(30)'));
  await running.end();
  // Errors before a session begins are the router's own, and name no routine.
  const routine = (error) => { delete error.routine; throw error; };
  await fails('no such database', (async () => { const lost = new Client({ connectionString: connectionString.replace(/[^/]*$/, 'nowhere_at_all') }); await lost.connect(); })().catch(routine));
}

async function pools() {
  const pool = new Pool({ connectionString, max: 4, application_name: 'a script', options: '-c app.start=yes' });
  show('startup', (await pool.query("SELECT current_setting('application_name') AS name, current_setting('app.start') AS start")).rows);
  show('pool', (await Promise.all(Array.from({ length: 30 }, (_, n) => pool.query({ name: 'sum', text: 'SELECT $1::int + 1 AS n', values: [n] })))).map((r) => r.rows[0].n));
  show('settings', await Promise.all(Array.from({ length: 12 }, async (_, n) => {
    const client = await pool.connect();
    try {
      await client.query('BEGIN');
      await client.query("SELECT set_config('app.number', $1, true)", [String(n)]);
      const { rows } = await client.query("SELECT current_setting('app.number') AS n");
      await client.query('COMMIT');
      return rows[0].n;
    } finally {
      client.release();
    }
  })));
  await pool.end();
}

(async () => {
  const client = new Client({ connectionString });
  await client.connect();
  for (const section of [basics, types, prepared, transactions, cursors, copies, notices, interruptions]) {
    console.log('===', section.name);
    await section(client);
  }
  await client.end();
  console.log('=== pools');
  await pools();
  console.log('done');
})().catch((error) => { console.error(error); process.exitCode = 1; });

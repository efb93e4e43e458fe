// node-postgres as applications use it. Arguments: where its packages are, then the steps to go
// through; the connection is in PG*.
//
// Its statements are unnamed unless they are given a name; `pipeline: true` sends without waiting.
'use strict'
const assert = require('node:assert').strict
const crypto = require('node:crypto')
const path = require('node:path')
const { pipeline: join } = require('node:stream/promises')
const { Readable } = require('node:stream')

const [packages, ...steps] = process.argv.slice(2)
const load = (name) => require(path.join(packages, 'node_modules', name))
const { Client, Pool } = load('pg')
const copyStreams = load('pg-copy-streams')

const NAME = 'steps-node'
const TABLE = 'steps_node'
const BIG = 4 * 1024 * 1024
const LIMIT_MS = 60_000

async function within(clients, options, work) {
  const all = Array.from({ length: clients }, () => new Client({ application_name: NAME, ...options }))
  try {
    for (const client of all) await client.connect()
    await work(...all)
  } finally {
    for (const client of all) await client.end()
  }
}

const one = async (client, text, values) =>
  Object.values((await client.query(text, values)).rows[0])[0]
const show = (client, setting) => one(client, 'SELECT current_setting($1)', [setting])
const fails = (code, work) => assert.rejects(work, (error) => {
  assert.equal(error.code, code, error.message)
  return true
})

const all = {
  startup: () => {
    const options = { statement_timeout: 54321, options: '-c TimeZone=Asia/Tokyo' }
    return within(1, options, async (client) => {
      for (let i = 0; i < 5; i++) {
        assert.equal(await show(client, 'application_name'), NAME)
        assert.equal(await show(client, 'statement_timeout'), '54321ms')
        assert.equal(await show(client, 'TimeZone'), 'Asia/Tokyo')
      }
    })
  },

  settings: () => within(2, {}, async (client, other) => {
    await client.query("SET TimeZone = 'Asia/Tokyo'")
    await other.query("SET TimeZone TO 'America/Lima'")
    await client.query('SET search_path = pg_catalog, public')
    for (let i = 0; i < 5; i++) {
      assert.equal(await show(client, 'TimeZone'), 'Asia/Tokyo')
      assert.equal(await show(other, 'TimeZone'), 'America/Lima')
      assert.equal(await show(client, 'search_path'), 'pg_catalog, public')
    }
    await client.query('RESET ALL')
    assert.equal(await show(client, 'application_name'), NAME)
    assert.notEqual(await show(client, 'TimeZone'), 'Asia/Tokyo')
    assert.equal(await show(other, 'TimeZone'), 'America/Lima')
  }),

  prepared: () => within(2, {}, async (client, other) => {
    for (let i = 0; i < 10; i++) {
      for (const who of [client, other]) {
        // The same name for different statements of two clients.
        const text = who === client ? 'SELECT $1::int + 1 AS n' : 'SELECT $1::int + 2 AS n'
        const { rows } = await who.query({ name: 'sum', text, values: [i] })
        assert.equal(rows[0].n, who === client ? i + 1 : i + 2)
      }
    }
    const quotient = (by) => client.query({ name: 'quotient', text: 'SELECT 1 / $1::int AS n', values: [by] })
    await fails('22012', quotient(0))
    assert.equal((await quotient(1)).rows[0].n, 1)
  }),

  binary: () => within(1, { binary: true }, async (client) => {
    // This driver reads every value as a text first, so that bytes beyond ASCII get lost in it.
    const kinds = ['int', 'int', 'bool', 'text', 'text']
    const text = 'SELECT ' + kinds.map((kind, i) => `$${i + 1}::${kind} AS c${i}`).join(', ')
    for (let i = 0; i < 3; i++) {
      const values = [42, 1 << 24, true, 'text', null]
      const { rows, fields } = await client.query({ text, values })
      assert.ok(fields.every(({ format }) => format === 'binary'))
      assert.deepEqual(Object.values(rows[0]), values)
    }
  }),

  pipeline: () => within(1, { pipeline: true }, async (client) => {
    const sent = Array.from({ length: 300 }, (_, i) => client.query('SELECT $1::int AS n', [i]))
    const found = await Promise.all(sent)
    assert.deepEqual(found.map(({ rows }) => rows[0].n), found.map((_, i) => i))
    const divided = await Promise.allSettled(
      [1, 0, 1].map((by) => client.query('SELECT 1 / $1::int AS n', [by])))
    assert.deepEqual(divided.map(({ status }) => status), ['fulfilled', 'rejected', 'fulfilled'])
    assert.equal(await one(client, 'SELECT 1'), 1)
  }),

  errors: () => within(1, {}, async (client) => {
    for (let i = 0; i < 3; i++) {
      await fails('42703', client.query('SELECT no_such_column'))
      await fails('42601', client.query('SELEC 1'))
      assert.equal(await one(client, 'SELECT 1'), 1)
    }
    const noticed = new Promise((resolve) => client.once('notice', resolve))
    await client.query("DO $$ BEGIN RAISE NOTICE 'noticed'; END $$")
    assert.equal((await noticed).message, 'noticed')
    // Several statements at once are one implicit transaction.
    await fails('22012', client.query(`CREATE TABLE ${TABLE}_undone (); SELECT 1 / 0`))
    assert.equal(await one(client, `SELECT to_regclass('${TABLE}_undone') IS NULL`), true)
  }),

  transactions: () => within(1, {}, async (client) => {
    await client.query(`DROP TABLE IF EXISTS ${TABLE}; CREATE TABLE ${TABLE} (id int PRIMARY KEY)`)
    await client.query('BEGIN')
    await client.query(`INSERT INTO ${TABLE} VALUES ($1)`, [1])
    await client.query("SET LOCAL TimeZone = 'Asia/Tokyo'")
    assert.equal(await show(client, 'TimeZone'), 'Asia/Tokyo')
    await client.query('COMMIT')
    assert.notEqual(await show(client, 'TimeZone'), 'Asia/Tokyo')
    await client.query('BEGIN')
    await client.query(`INSERT INTO ${TABLE} VALUES ($1)`, [2])
    await fails('23505', client.query(`INSERT INTO ${TABLE} VALUES ($1)`, [1]))
    await fails('25P02', client.query('SELECT 1'))
    await client.query('ROLLBACK')
    await client.query('BEGIN')
    await client.query('SAVEPOINT s')
    await fails('23505', client.query(`INSERT INTO ${TABLE} VALUES ($1)`, [1]))
    await client.query('ROLLBACK TO s')
    await client.query(`INSERT INTO ${TABLE} VALUES ($1)`, [4])
    await client.query('COMMIT')
    const { rows } = await client.query(`SELECT id FROM ${TABLE} ORDER BY id`)
    assert.deepEqual(rows.map(({ id }) => id), [1, 4])
    await client.query(`DROP TABLE ${TABLE}`)
  }),

  cancel: () => within(2, {}, async (client, other) => {
    const sleeping = fails('57014', client.query('SELECT pg_sleep(60) /* cancel-node */'))
    const until = Date.now() + LIMIT_MS
    const count = `SELECT count(*)::int FROM pg_stat_activity
      WHERE wait_event = 'PgSleep' AND query LIKE '%cancel-node%'`
    while (await one(other, count) !== 1) assert.ok(Date.now() < until, 'it does not sleep')
    const { processID, secretKey } = client
    const canceller = new Client({}).connection
    canceller.connect(Number(process.env.PGPORT), process.env.PGHOST)
    await new Promise((resolve, reject) => {
      canceller.once('connect', () => canceller.cancel(processID, secretKey))
      canceller.once('end', resolve)
      canceller.once('error', reject)
    })
    await sleeping
    assert.equal(await one(client, 'SELECT 1'), 1)
  }),

  copy: () => within(1, {}, async (client) => {
    const rows = 20_000
    await client.query(`DROP TABLE IF EXISTS ${TABLE}_copy; CREATE TABLE ${TABLE}_copy (id int, what text)`)
    const lines = function * () {
      for (let i = 0; i < rows; i++) yield `${i}\trow ${i}\n`
    }
    const into = () => client.query(copyStreams.from(`COPY ${TABLE}_copy FROM STDIN`))
    await join(Readable.from(lines()), into())
    let bytes = 0
    let newlines = 0
    for await (const chunk of client.query(copyStreams.to(`COPY ${TABLE}_copy TO STDOUT`))) {
      bytes += chunk.length
      newlines += chunk.filter((byte) => byte === 10).length
    }
    assert.equal(newlines, rows)
    assert.equal(bytes, [...lines()].join('').length)
    await fails('22P02', join(Readable.from(['no number\tx\n']), into()))
    assert.equal(await one(client, `SELECT count(*)::int FROM ${TABLE}_copy`), rows)
    await client.query(`DROP TABLE ${TABLE}_copy`)
  }),

  big_values: () => within(1, {}, async (client) => {
    const md5 = (data) => crypto.createHash('md5').update(data).digest('hex')
    const text = 'ž'.repeat(BIG / 2)
    const raw = crypto.randomBytes(BIG)
    for (let i = 0; i < 2; i++) {
      const [one] = (await client.query('SELECT $1::text AS same, md5($1::text) AS sum', [text])).rows
      assert.ok(one.same === text && one.sum === md5(text))
      const [two] = (await client.query('SELECT $1::bytea AS same, md5($1::bytea) AS sum', [raw])).rows
      assert.ok(two.same.equals(raw) && two.sum === md5(raw))
    }
  }),

  large_objects: () => within(1, {}, async (client) => {
    const data = crypto.randomBytes(300_000)
    await client.query('BEGIN')
    const oid = await one(client, 'SELECT lo_create(0)')
    const handle = await one(client, 'SELECT lo_open($1, 131072)', [oid])
    await client.query('SELECT lowrite($1, $2)', [handle, data])
    await client.query('SELECT lo_lseek64($1, 100000, 0)', [handle])
    const part = await one(client, 'SELECT loread($1, 1000)', [handle])
    assert.ok(part.equals(data.subarray(100_000, 101_000)))
    await client.query('COMMIT')
    assert.ok((await one(client, 'SELECT lo_get($1)', [oid])).equals(data))
    await client.query('SELECT lo_unlink($1)', [oid])
  }),

  listen: () => within(2, {}, async (client, other) => {
    await client.query(`LISTEN ${TABLE}`)
    for (let i = 0; i < 3; i++) {
      const heard = new Promise((resolve) => client.once('notification', resolve))
      await other.query('SELECT pg_notify($1, $2)', [TABLE, `payload ${i}`])
      const { channel, payload } = await heard
      assert.deepEqual([channel, payload], [TABLE, `payload ${i}`])
    }
    await client.query('UNLISTEN *')
  }),

  state: () => within(2, {}, async (client, other) => {
    await client.query('CREATE TEMPORARY TABLE steps_temporary (id int)')
    for (let i = 0; i < 5; i++) {
      await client.query('INSERT INTO steps_temporary VALUES ($1)', [i])
      assert.equal(await one(other, "SELECT to_regclass('steps_temporary') IS NULL"), true)
    }
    assert.equal(await one(client, 'SELECT count(*)::int FROM steps_temporary'), 5)
    await client.query('DROP TABLE steps_temporary')
    await client.query('SELECT pg_advisory_lock(4713)')
    assert.equal(await one(client, 'SELECT 1'), 1)
    assert.equal(await one(other, 'SELECT pg_try_advisory_lock(4713)'), false)
    assert.equal(await one(client, 'SELECT pg_advisory_unlock(4713)'), true)
    assert.equal(await one(other, 'SELECT pg_try_advisory_lock(4713)'), true)
  }),

  cursor: () => within(1, {}, async (client) => {
    await client.query('BEGIN')
    await client.query('DECLARE steps_cursor CURSOR FOR SELECT generate_series(1, 1000) AS n')
    let total = 0
    for (;;) {
      const { rows } = await client.query('FETCH 100 FROM steps_cursor')
      if (rows.length === 0) break
      total += rows.reduce((sum, { n }) => sum + n, 0)
    }
    assert.equal(total, 500_500)
    await client.query('COMMIT')
  }),

  many: async () => {
    const pool = new Pool({ application_name: 'many-node', max: 8 })
    const work = async (number) => {
      for (let turn = 0; turn < 10; turn++) {
        const client = await pool.connect()
        try {
          await client.query(`SET work_mem = '${number + 1}MB'`)
          assert.equal(await show(client, 'work_mem'), `${number + 1}MB`)
          assert.equal(await show(client, 'application_name'), 'many-node')
          const sum = { name: `sum-${number}`, text: `SELECT $1::int + ${number} AS n`, values: [turn] }
          assert.equal((await client.query(sum)).rows[0].n, turn + number)
        } finally {
          client.release()
        }
      }
    }
    await Promise.all(Array.from({ length: 16 }, (_, number) => work(number)))
    await pool.end()
  },
}

async function main() {
  for (const name of steps) {
    try {
      await all[name]()
      console.log(`passed ${name}`)
    } catch (error) {
      console.error(error)
      console.log(`failed ${name}`)
      process.exitCode = 1
    }
  }
}

main()

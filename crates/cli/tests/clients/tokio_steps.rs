//! tokio-postgres as applications use it: binary formats, every statement prepared under a name of
//! its own, requests sent without waiting for answers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt, future, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{
    AsyncMessage, Client, Config, Error, IsolationLevel, NoTls, SimpleQueryMessage,
};

const NAME: &str = "steps-tokio";
const BIG_BYTES: usize = 4 * 1024 * 1024;
/// More than a step lets come.
const HEARD_MAX: usize = 100;
const ROWS: usize = 20_000;
const LIMIT: Duration = Duration::from_secs(60);

/// A connection whose task ends with it, and what it hears beside answers.
struct Connected {
    client: Client,
    heard: mpsc::Receiver<AsyncMessage>,
    task: JoinHandle<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(config: &Config) -> Connected {
    let (client, mut connection) = config.connect(NoTls).await.unwrap();
    let (said, heard) = mpsc::channel(HEARD_MAX);
    let task = tokio::spawn(async move {
        let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            // Whoever does not listen any more has ended.
            said.send(message).await.unwrap_or_default();
        }
    });
    Connected { client, heard, task }
}

/// Goes through one step.
pub async fn step(name: &str, mut config: Config) {
    config.application_name(NAME);
    match name {
        "startup" => startup(config).await,
        "settings" => settings(&config).await,
        "prepared" => prepared(&config).await,
        "binary" => binary(&config).await,
        "pipeline" => pipeline(&config).await,
        "errors" => errors(&config).await,
        "transactions" => transactions(&config).await,
        "cancel" => cancel(&config).await,
        "copy" => copy(&config).await,
        "big_values" => big_values(&config).await,
        "large_objects" => large_objects(&config).await,
        "listen" => listen(&config).await,
        "state" => state(&config).await,
        "cursor" => cursor(&config).await,
        "many" => many(&config).await,
        other => panic!("no step is called {other}"),
    }
}

async fn show(client: &Client, setting: &str) -> String {
    client.query_one("SELECT current_setting($1)", &[&setting]).await.unwrap().get(0)
}

async fn integer(client: &Client, statement: &str, value: i32) -> Result<i32, Error> {
    client.query_one(statement, &[&value]).await.map(|row| row.get(0))
}

async fn count(client: &Client, statement: &str) -> i64 {
    client.query_one(statement, &[]).await.unwrap().get(0)
}

async fn boolean(client: &Client, statement: &str) -> bool {
    client.query_one(statement, &[]).await.unwrap().get(0)
}

fn fails<T>(found: Result<T, Error>, state: &SqlState) {
    let error = found.err().expect("it fails");
    assert_eq!(error.code(), Some(state), "{error:?}");
}

async fn startup(mut config: Config) {
    config.options("-c statement_timeout=54321 -c TimeZone=Asia/Tokyo");
    let connected = connect(&config).await;
    for _ in 0..5 {
        assert_eq!(show(&connected.client, "application_name").await, NAME);
        assert_eq!(show(&connected.client, "statement_timeout").await, "54321ms");
        assert_eq!(show(&connected.client, "TimeZone").await, "Asia/Tokyo");
    }
}

async fn settings(config: &Config) {
    let (client, other) = (connect(config).await, connect(config).await);
    client.client.batch_execute("SET TimeZone = 'Asia/Tokyo'").await.unwrap();
    other.client.batch_execute("SET TimeZone TO 'America/Lima'").await.unwrap();
    client.client.execute("SET search_path = pg_catalog, public", &[]).await.unwrap();
    for _ in 0..5 {
        assert_eq!(show(&client.client, "TimeZone").await, "Asia/Tokyo");
        assert_eq!(show(&other.client, "TimeZone").await, "America/Lima");
        assert_eq!(show(&client.client, "search_path").await, "pg_catalog, public");
    }
    client.client.batch_execute("RESET ALL").await.unwrap();
    assert_ne!(show(&client.client, "TimeZone").await, "Asia/Tokyo");
    assert_eq!(show(&client.client, "application_name").await, NAME);
    assert_eq!(show(&other.client, "TimeZone").await, "America/Lima");
}

async fn prepared(config: &Config) {
    let (client, other) = (connect(config).await, connect(config).await);
    // The driver counts its names from s0 for each connection.
    let sum = client.client.prepare("SELECT $1::int + 1").await.unwrap();
    let difference = other.client.prepare("SELECT $1::int - 1").await.unwrap();
    for number in 0..10 {
        let row = client.client.query_one(&sum, &[&number]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), number + 1);
        let row = other.client.query_one(&difference, &[&number]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), number - 1);
    }
    let quotient = client.client.prepare("SELECT 1 / $1::int").await.unwrap();
    fails(client.client.query(&quotient, &[&0]).await, &SqlState::DIVISION_BY_ZERO);
    client.client.query(&quotient, &[&1]).await.unwrap();
    // Closed by name on the server, and used again.
    drop(sum);
    assert_eq!(integer(&client.client, "SELECT $1::int + 1", 1).await.unwrap(), 2);
    fails(client.client.prepare("SELECT no_such_column").await, &SqlState::UNDEFINED_COLUMN);
    client.client.query(&quotient, &[&1]).await.unwrap();
}

async fn binary(config: &Config) {
    let connected = connect(config).await;
    let raw: Vec<u8> = (0..=255).collect();
    let list = vec![Some(1), Some(2), None];
    let statement = "SELECT $1::int, $2::bigint, $3::float8, $4::bool, $5::text, $6::bytea, \
        $7::int[], $8::text";
    let nothing: Option<String> = None;
    let values: [&(dyn ToSql + Sync); 8] =
        [&42, &(1_i64 << 40), &1.5, &true, &"žluť 漢字 \n", &raw, &list, &nothing];
    for _ in 0..3 {
        let row = connected.client.query_one(statement, &values).await.unwrap();
        assert_eq!((row.get::<_, i32>(0), row.get::<_, i64>(1)), (42, 1 << 40));
        assert_eq!((row.get::<_, f64>(2), row.get::<_, bool>(3)), (1.5, true));
        assert_eq!(row.get::<_, String>(4), "žluť 漢字 \n");
        assert_eq!(row.get::<_, Vec<u8>>(5), raw);
        assert_eq!(row.get::<_, Vec<Option<i32>>>(6), list);
        assert_eq!(row.get::<_, Option<String>>(7), None);
    }
}

async fn pipeline(config: &Config) {
    let Connected { client, .. } = &connect(config).await;
    let sum = client.prepare("SELECT $1::int + 1").await.unwrap();
    let sent = (0..300).map(async |number: i32| {
        let row = client.query_one(&sum, &[&number]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), number + 1);
    });
    future::join_all(sent).await;
    let quotients = [1, 0, 1].map(|by| integer(client, "SELECT 1 / $1::int", by));
    let found = future::join_all(quotients).await;
    assert_eq!(found.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(integer(client, "SELECT $1::int", 1).await.unwrap(), 1);
}

async fn errors(config: &Config) {
    let Connected { client, heard, .. } = &mut connect(config).await;
    for _ in 0..3 {
        let unknown = client.query("SELECT no_such_column", &[]).await;
        fails(unknown, &SqlState::UNDEFINED_COLUMN);
        fails(client.batch_execute("SELEC 1").await, &SqlState::SYNTAX_ERROR);
        assert_eq!(integer(client, "SELECT $1::int", 1).await.unwrap(), 1);
    }
    client.batch_execute("DO $$ BEGIN RAISE NOTICE 'noticed'; END $$").await.unwrap();
    let noticed = tokio::time::timeout(LIMIT, heard.recv()).await.unwrap();
    assert!(matches!(noticed, Some(AsyncMessage::Notice(notice)) if notice.message() == "noticed"));
}

async fn transactions(config: &Config) {
    let Connected { client, .. } = &mut connect(config).await;
    let create = "DROP TABLE IF EXISTS steps_tokio; CREATE TABLE steps_tokio (id int PRIMARY KEY)";
    client.batch_execute(create).await.unwrap();
    let insert = "INSERT INTO steps_tokio VALUES ($1)";
    let transaction = client.transaction().await.unwrap();
    transaction.execute(insert, &[&1]).await.unwrap();
    transaction.batch_execute("SET LOCAL TimeZone = 'Asia/Tokyo'").await.unwrap();
    assert_eq!(show(transaction.client(), "TimeZone").await, "Asia/Tokyo");
    transaction.commit().await.unwrap();
    assert_ne!(show(client, "TimeZone").await, "Asia/Tokyo");
    let builder = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
    let transaction = builder.start().await.unwrap();
    transaction.execute(insert, &[&2]).await.unwrap();
    fails(transaction.execute(insert, &[&1]).await, &SqlState::UNIQUE_VIOLATION);
    fails(transaction.query("SELECT 1", &[]).await, &SqlState::IN_FAILED_SQL_TRANSACTION);
    transaction.rollback().await.unwrap();
    let mut transaction = client.transaction().await.unwrap();
    let inner = transaction.transaction().await.unwrap();
    fails(inner.execute(insert, &[&1]).await, &SqlState::UNIQUE_VIOLATION);
    inner.rollback().await.unwrap();
    transaction.execute(insert, &[&4]).await.unwrap();
    transaction.commit().await.unwrap();
    let rows = client.query("SELECT id FROM steps_tokio ORDER BY id", &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>(), [1, 4]);
    client.batch_execute("DROP TABLE steps_tokio").await.unwrap();
}

async fn cancel(config: &Config) {
    let (client, other) = (&connect(config).await.client, &connect(config).await.client);
    let token = client.cancel_token();
    let sleep = client.batch_execute("SELECT pg_sleep(60) /* cancel-tokio */");
    let strike = async {
        let until = Instant::now() + LIMIT;
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' \
            AND query LIKE '%cancel-tokio%'";
        while count(other, sleeping).await != 1 {
            assert!(Instant::now() < until, "it does not sleep");
        }
        token.cancel_query(NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::join!(sleep, strike);
    fails(slept, &SqlState::QUERY_CANCELED);
    assert_eq!(integer(client, "SELECT $1::int", 1).await.unwrap(), 1);
}

async fn copy(config: &Config) {
    let client = &connect(config).await.client;
    let create = "DROP TABLE IF EXISTS steps_tokio_copy; \
        CREATE TABLE steps_tokio_copy (id int, what text)";
    client.batch_execute(create).await.unwrap();
    let rows: Vec<Bytes> = (0..ROWS).map(|id| format!("{id}\trow {id}\n").into()).collect();
    let into = "COPY steps_tokio_copy FROM STDIN";
    let mut sink = Box::pin(client.copy_in(into).await.unwrap());
    sink.send_all(&mut stream::iter(rows.iter().cloned().map(Ok))).await.unwrap();
    assert_eq!(sink.as_mut().finish().await.unwrap(), ROWS as u64);
    let out = client.copy_out("COPY steps_tokio_copy TO STDOUT").await.unwrap();
    let read: Vec<Bytes> = out.try_collect().await.unwrap();
    assert_eq!(read.concat(), rows.concat());
    let mut sink = Box::pin(client.copy_in(into).await.unwrap());
    sink.send(Bytes::from_static(b"no number\tx\n")).await.unwrap();
    fails(sink.as_mut().finish().await, &SqlState::INVALID_TEXT_REPRESENTATION);
    // Dropped: the application gives up.
    drop(client.copy_in::<_, Bytes>(into).await.unwrap());
    assert_eq!(count(client, "SELECT count(*) FROM steps_tokio_copy").await, ROWS as i64);
    client.batch_execute("DROP TABLE steps_tokio_copy").await.unwrap();
}

async fn big_values(config: &Config) {
    let client = &connect(config).await.client;
    let text = "ž".repeat(BIG_BYTES / 2);
    let raw: Vec<u8> = (0..=250).cycle().take(BIG_BYTES).collect();
    for _ in 0..2 {
        let row = client.query_one("SELECT $1::text, length($1::text)", &[&text]).await.unwrap();
        assert!(row.get::<_, &str>(0) == text);
        assert_eq!(usize::try_from(row.get::<_, i32>(1)), Ok(BIG_BYTES / 2));
        let row = client.query_one("SELECT $1::bytea", &[&raw]).await.unwrap();
        assert!(row.get::<_, &[u8]>(0) == raw);
    }
}

async fn large_objects(config: &Config) {
    let Connected { client, .. } = &mut connect(config).await;
    let data: Vec<u8> = (0..=240).cycle().take(300_000).collect();
    let transaction = client.transaction().await.unwrap();
    let oid: u32 = transaction.query_one("SELECT lo_create(0)", &[]).await.unwrap().get(0);
    let opened = transaction.query_one("SELECT lo_open($1, 131072)", &[&oid]).await.unwrap();
    let handle: i32 = opened.get(0);
    transaction.query_one("SELECT lowrite($1, $2)", &[&handle, &data]).await.unwrap();
    transaction.query_one("SELECT lo_lseek64($1, 100000, 0)", &[&handle]).await.unwrap();
    let part = transaction.query_one("SELECT loread($1, 1000)", &[&handle]).await.unwrap();
    assert_eq!(part.get::<_, &[u8]>(0), &data[100_000..101_000]);
    transaction.commit().await.unwrap();
    let whole = client.query_one("SELECT lo_get($1)", &[&oid]).await.unwrap();
    assert!(whole.get::<_, &[u8]>(0) == data);
    client.query_one("SELECT lo_unlink($1)", &[&oid]).await.unwrap();
}

async fn listen(config: &Config) {
    let (mut client, other) = (connect(config).await, connect(config).await);
    client.client.batch_execute("LISTEN steps_tokio").await.unwrap();
    for number in 0..3 {
        let payload = format!("payload {number}");
        let notify = "SELECT pg_notify('steps_tokio', $1)";
        other.client.query_one(notify, &[&payload]).await.unwrap();
        let heard = tokio::time::timeout(LIMIT, client.heard.recv()).await.unwrap();
        let Some(AsyncMessage::Notification(notification)) = heard else { panic!("{heard:?}") };
        assert_eq!((notification.channel(), notification.payload()), ("steps_tokio", &*payload));
    }
    client.client.batch_execute("UNLISTEN *").await.unwrap();
}

async fn state(config: &Config) {
    let (client, other) = (&connect(config).await.client, &connect(config).await.client);
    client.batch_execute("CREATE TEMPORARY TABLE steps_temporary (id int)").await.unwrap();
    for number in 0..5 {
        let insert = "INSERT INTO steps_temporary VALUES ($1)";
        client.execute(insert, &[&number]).await.unwrap();
        assert!(boolean(other, "SELECT to_regclass('steps_temporary') IS NULL").await);
    }
    assert_eq!(count(client, "SELECT count(*) FROM steps_temporary").await, 5);
    client.batch_execute("DROP TABLE steps_temporary").await.unwrap();
    client.query_one("SELECT pg_advisory_lock(4715)", &[]).await.unwrap();
    assert_eq!(integer(client, "SELECT $1::int", 1).await.unwrap(), 1);
    assert!(!boolean(other, "SELECT pg_try_advisory_lock(4715)").await);
    assert!(boolean(client, "SELECT pg_advisory_unlock(4715)").await);
    assert!(boolean(other, "SELECT pg_try_advisory_lock(4715)").await);
    assert!(boolean(other, "SELECT pg_advisory_unlock(4715)").await);
}

async fn cursor(config: &Config) {
    let Connected { client, .. } = &mut connect(config).await;
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("SELECT generate_series(1, 1000)", &[]).await.unwrap();
    let mut total = 0;
    loop {
        let rows = transaction.query_portal(&portal, 100).await.unwrap();
        if rows.is_empty() {
            break;
        }
        total += rows.iter().map(|row| row.get::<_, i32>(0)).sum::<i32>();
    }
    assert_eq!(total, 500_500);
    transaction.commit().await.unwrap();
}

async fn many(config: &Config) {
    let mut clients = Vec::new();
    for number in 1..=8 {
        let mut config = config.clone();
        config.application_name(format!("many-{number}"));
        let connected = connect(&config).await;
        let set = format!("SET work_mem = '{number}MB'");
        let said = connected.client.simple_query(&set).await.unwrap();
        assert!(matches!(said.as_slice(), [SimpleQueryMessage::CommandComplete(_)]), "{said:?}");
        let sum = format!("SELECT $1::int + {number}");
        let sum = connected.client.prepare(&sum).await.unwrap();
        clients.push((number, connected, sum));
    }
    let work = clients.iter().map(async |(number, Connected { client, .. }, sum)| {
        for turn in 0..20 {
            assert_eq!(show(client, "work_mem").await, format!("{number}MB"));
            assert_eq!(show(client, "application_name").await, format!("many-{number}"));
            let row = client.query_one(sum, &[&turn]).await.unwrap();
            assert_eq!(row.get::<_, i32>(0), turn + number);
        }
    });
    future::join_all(work).await;
}

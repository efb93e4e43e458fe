//! Writers that never stop trying, and the few statements that a drill needs besides.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_postgres::config::{LoadBalanceHosts, TargetSessionAttrs};
use tokio_postgres::{Client, Config, NoTls, Statement};

use crate::ledger::{Ack, IDS_PER_WRITER, Ledger};

/// How long one attempt of a writer may take, to connect or to insert. What takes longer is given
/// up: its outcome is unknown.
pub const ATTEMPT_LIMIT: Duration = Duration::from_secs(1);

/// The statement of every writer. It says where it ran: the port is in the configuration of the
/// server itself, so that no relay or proxy can blur it.
const INSERT: &str = "INSERT INTO pgherd_drill (id, writer) VALUES ($1, $2) \
    RETURNING current_setting('port')::int, \
    ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int";

/// The table of every writer.
const CREATE: &str = "CREATE TABLE IF NOT EXISTS pgherd_drill (id bigint PRIMARY KEY, \
    writer int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp()); TRUNCATE pgherd_drill";

const NEXT_SEGMENT: &str = "SELECT pg_create_restore_point('full'); SELECT pg_switch_wal()";
/// More segments than a server of this size keeps for use.
const SEGMENTS_MAX: u32 = 24;
/// How long one of them may take.
const SEGMENT_LIMIT: Duration = Duration::from_secs(2);

/// A statement failed.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The server, or the way to it.
    #[error("cannot {what}: {}", describe(source))]
    Failed {
        /// What was tried.
        what: &'static str,
        /// What came back.
        source: tokio_postgres::Error,
    },
    /// No answer in time.
    #[error("cannot {what}: no answer within {limit:?}")]
    Late {
        /// What was tried.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The row just written was not read back.
    #[error("a row that was just written was not read back")]
    Vanished,
}

/// The server's own words where it has some; the driver's text alone says only "db error".
fn describe(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string)
}

/// How to reach a database; the driver's own type, so that others need not depend on the driver.
pub type Target = Config;

/// How to reach a database of the lab on loopback.
#[must_use]
pub fn target(port: u16, user: &str, password: &str, application_name: &str) -> Config {
    target_at("127.0.0.1", port, user, password, application_name)
}

/// The same elsewhere: `host` is an address, or the directory of a Unix socket, which no fault of a
/// network can touch.
#[must_use]
pub fn target_at(
    host: &str,
    port: u16,
    user: &str,
    password: &str,
    application_name: &str,
) -> Config {
    let mut config = Config::new();
    config
        .host(host)
        .port(port)
        .user(user)
        .password(password)
        .dbname("postgres")
        .application_name(application_name)
        .connect_timeout(ATTEMPT_LIMIT);
    config
}

/// Whichever of several servers takes writes, as libpq finds it with
/// `target_session_attrs=read-write` and `load_balance_hosts=random`: in the order of the list, a
/// first server that accepts connections and never answers would use up every attempt, which has a
/// second.
#[must_use]
pub fn target_among(
    servers: &[(Ipv4Addr, u16)],
    user: &str,
    password: &str,
    application_name: &str,
) -> Config {
    let mut config = Config::new();
    for (address, port) in servers {
        config.host(address.to_string()).port(*port);
    }
    config
        .user(user)
        .password(password)
        .dbname("postgres")
        .application_name(application_name)
        .connect_timeout(ATTEMPT_LIMIT)
        .load_balance_hosts(LoadBalanceHosts::Random)
        .target_session_attrs(TargetSessionAttrs::ReadWrite);
    config
}

/// A connection whose task ends with it.
pub(crate) struct Session {
    client: Client,
    task: JoinHandle<()>,
}

impl Session {
    pub(crate) async fn open(target: &Config) -> Result<Session, tokio_postgres::Error> {
        let (client, connection) = target.connect(NoTls).await?;
        // The client sees every error of the connection in its own calls.
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok(Session { client, task })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs `work` on a new connection, within `limit`.
async fn once<T>(
    target: &Config,
    what: &'static str,
    limit: Duration,
    work: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
) -> Result<T, SqlError> {
    let all = async {
        let session = Session::open(target).await?;
        work(&session.client).await
    };
    match timeout(limit, all).await {
        Ok(result) => result.map_err(|source| SqlError::Failed { what, source }),
        Err(_) => Err(SqlError::Late { what, limit }),
    }
}

/// Makes the drill's table, empty.
///
/// # Errors
/// The server refused, or did not answer within `limit`.
pub async fn create_table(target: &Config, limit: Duration) -> Result<(), SqlError> {
    once(target, "make the drill's table", limit, async |client| client.batch_execute(CREATE).await)
        .await
}

/// Runs a statement for its effect.
///
/// # Errors
/// The server refused, or did not answer within `limit`.
pub async fn execute(target: &Config, statement: &str, limit: Duration) -> Result<(), SqlError> {
    once(target, "run a statement", limit, async |client| client.batch_execute(statement).await)
        .await
}

/// Asks for so many new segments of WAL that a full disk is felt: written ones are used again, so
/// it bites only when those are used up. Nothing of it waits for a standby.
pub async fn use_up_segments(target: &Config) {
    for _ in 0..SEGMENTS_MAX {
        // An error is what is wanted, or says that it is a standby: nothing to be done there.
        if execute(target, NEXT_SEGMENT, SEGMENT_LIMIT).await.is_err() {
            return;
        }
    }
}

/// Every identifier in the drill's table.
///
/// # Errors
/// The server refused, or did not answer within `limit`.
pub async fn present(target: &Config, limit: Duration) -> Result<BTreeSet<i64>, SqlError> {
    Ok(integers(target, "SELECT id FROM pgherd_drill", limit).await?.into_iter().collect())
}

/// The rows of a statement with one column, of type `bigint` and never null.
///
/// # Errors
/// The server refused, or did not answer within `limit`.
pub async fn integers(
    target: &Config,
    statement: &str,
    limit: Duration,
) -> Result<Vec<i64>, SqlError> {
    let rows =
        once(target, "read", limit, async |client| client.query(statement, &[]).await).await?;
    rows.iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()
        .map_err(|source| SqlError::Failed { what: "read", source })
}

/// A connection of which the backend is known, to be ended with it.
pub struct Known {
    session: Session,
    /// The backend's process.
    pub pid: u32,
}

impl Known {
    /// Opens it.
    ///
    /// # Errors
    /// The server refused, or did not answer within `limit`.
    pub async fn open(target: &Config, limit: Duration) -> Result<Known, SqlError> {
        let what = "open a connection";
        let open = async {
            let session = Session::open(target).await?;
            let row = session.client.query_one("SELECT pg_backend_pid()::bigint", &[]).await?;
            let pid: i64 = row.try_get(0)?;
            // A pid is positive and has 31 bits at most.
            Ok(Known { session, pid: u32::try_from(pid).unwrap_or(0) })
        };
        match timeout(limit, open).await {
            Ok(result) => result.map_err(|source| SqlError::Failed { what, source }),
            Err(_) => Err(SqlError::Late { what, limit }),
        }
    }

    /// Runs a statement for its effect.
    ///
    /// # Errors
    /// The server refused, or did not answer within `limit`; the backend may be gone.
    pub async fn execute(&self, statement: &str, limit: Duration) -> Result<(), SqlError> {
        let what = "run a statement";
        match timeout(limit, self.session.client.batch_execute(statement)).await {
            Ok(result) => result.map_err(|source| SqlError::Failed { what, source }),
            Err(_) => Err(SqlError::Late { what, limit }),
        }
    }
}

/// Writes a row, committed, and reads it back, on one connection.
///
/// # Errors
/// The server refused or did not answer within `limit`, or the row was not there.
pub async fn probe(target: &Config, limit: Duration) -> Result<(), SqlError> {
    let found = once(target, "write and read a row", limit, async |client| {
        client
            .batch_execute("CREATE TABLE IF NOT EXISTS pgherd_probe (at timestamptz PRIMARY KEY)")
            .await?;
        let insert = "INSERT INTO pgherd_probe VALUES (clock_timestamp()) RETURNING at::text";
        let written: String = client.query_one(insert, &[]).await?.get(0);
        let read = "SELECT count(*) FROM pgherd_probe WHERE at = $1::text::timestamptz";
        let count: i64 = client.query_one(read, &[&written]).await?.get(0);
        client
            .batch_execute("DELETE FROM pgherd_probe WHERE at < now() - interval '1 minute'")
            .await?;
        Ok(count == 1)
    })
    .await?;
    if found { Ok(()) } else { Err(SqlError::Vanished) }
}

/// The ledger as the writers share it.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Ledger>>);

impl Shared {
    /// The ledger, for a moment; never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Ledger> {
        // A panic in between leaves whole entries: each is entered by one push.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who writes where, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The writer's number; its identifiers start at `number * IDS_PER_WRITER + skip + 1`.
    pub number: u16,
    /// How many identifiers an earlier writer of this number may have used.
    pub skip: i64,
    /// Where it writes.
    pub target: Config,
    /// Between two inserts.
    pub pace: Duration,
}

/// A running writer. It ends when dropped.
pub struct Writer {
    task: JoinHandle<()>,
}

impl Writer {
    /// Starts a writer. Times in the ledger are spans since `epoch`.
    #[must_use]
    pub fn start(plan: Plan, ledger: Shared, epoch: Instant) -> Writer {
        let next_id = i64::from(plan.number) * IDS_PER_WRITER + plan.skip + 1;
        let run = Run { plan, ledger, epoch, next_id };
        Writer { task: tokio::spawn(run.forever()) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Run {
    plan: Plan,
    ledger: Shared,
    epoch: Instant,
    next_id: i64,
}

/// How an attempt ended.
enum Attempt {
    Acknowledged {
        port: i32,
        timeline: i32,
    },
    /// The server said no: the row is not there. The connection is good.
    Refused,
    /// No answer, or a broken connection: the row may be there.
    Unknown,
}

impl Run {
    async fn forever(mut self) {
        let mut pace = tokio::time::interval(self.plan.pace);
        // Inserts that were not made while the server was away are not made up for.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session: Option<(Session, Statement)> = None;
        loop {
            pace.tick().await;
            if session.is_none() {
                session = self.connect().await;
            }
            let Some((open, statement)) = &session else { continue };
            let id = self.next_id;
            self.next_id += 1;
            let sent = self.epoch.elapsed();
            match self.insert(open, statement, id).await {
                Attempt::Acknowledged { port, timeline } => self.enter(id, sent, port, timeline),
                Attempt::Refused => {}
                Attempt::Unknown => {
                    self.ledger.lock().unknown();
                    session = None;
                }
            }
        }
    }

    async fn connect(&self) -> Option<(Session, Statement)> {
        let open = async {
            let session = Session::open(&self.plan.target).await.ok()?;
            let statement = session.client.prepare(INSERT).await.ok()?;
            Some((session, statement))
        };
        timeout(ATTEMPT_LIMIT, open).await.ok().flatten()
    }

    async fn insert(&self, session: &Session, statement: &Statement, id: i64) -> Attempt {
        let writer = i32::from(self.plan.number);
        // `query` is done only when the server is ready for the next one, so after the commit: the
        // row itself is sent before.
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&id, &writer];
        let insert = session.client.query(statement, &parameters);
        match timeout(ATTEMPT_LIMIT, insert).await {
            Ok(Ok(rows)) => match rows.first() {
                Some(row) => Attempt::Acknowledged { port: row.get(0), timeline: row.get(1) },
                None => Attempt::Unknown,
            },
            Ok(Err(error)) if error.as_db_error().is_some() && !session.client.is_closed() => {
                Attempt::Refused
            }
            Ok(Err(_)) | Err(_) => Attempt::Unknown,
        }
    }

    fn enter(&self, id: i64, sent: Duration, port: i32, timeline: i32) {
        let ack = Ack {
            id,
            writer: self.plan.number,
            sent,
            acked: self.epoch.elapsed(),
            // A port has 16 bits and a timeline is positive; anything else is entered as 0, which
            // no other server has, and so is seen.
            port: u16::try_from(port).unwrap_or(0),
            timeline: u32::try_from(timeline).unwrap_or(0),
        };
        self.ledger.lock().acknowledged(ack);
    }
}

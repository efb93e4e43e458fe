//! Connections to this instance and to an upstream. Everything goes through the simple protocol:
//! one round trip, and text that the caller reads.

use std::time::Duration;

use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, SimpleQueryMessage, Socket};
use types::{Lsn, Millis, Upstream};

use crate::config::{Credentials, InstanceConfig};
use crate::error::Error;
use crate::secure::{Maker, Security, may_try_again};

/// The limit of one probe, connection included.
pub(crate) const PROBE_LIMIT: Millis = Millis(2000);
/// The limit of a connection attempt to another host.
pub(crate) const REMOTE_LIMIT: Millis = Millis(5000);

/// One row as text.
pub(crate) type Row = Vec<Option<String>>;

/// Connects to this instance as superuser. `statement_timeout` is 0 for statements that may wait
/// for synchronous standbys: a cancelled wait counts as a commit in PostgreSQL.
pub(crate) async fn connect_local(
    config: &InstanceConfig,
    application: &str,
    statement_timeout: Millis,
) -> Result<Client, Error> {
    let mut pg = tokio_postgres::Config::new();
    let mut secured = Some(&config.superuser);
    let address = if config.use_unix_socket {
        pg.host_path(&config.socket_dir);
        secured = None;
        format!("{}:{}", config.socket_dir.display(), config.port)
    } else {
        let host = config.local_host();
        pg.host(&host);
        format!("{host}:{}", config.port)
    };
    pg.port(config.port);
    pg.options(format!(
        "-c statement_timeout={} -c search_path=pg_catalog -c default_transaction_read_only=off \
         -c idle_in_transaction_session_timeout=0 -c synchronous_commit=on",
        statement_timeout.0
    ));
    let peer = Server { address, secured, limit: PROBE_LIMIT };
    connect(pg, &config.database, &config.superuser, application, peer).await
}

/// Connects to a server that listens on a private socket only.
pub(crate) async fn connect_private(
    config: &InstanceConfig,
    socket_dir: &std::path::Path,
) -> Result<Client, Error> {
    let mut pg = tokio_postgres::Config::new();
    pg.host_path(socket_dir).port(config.port);
    let address = socket_dir.display().to_string();
    let peer = Server { address, secured: None, limit: PROBE_LIMIT };
    connect(pg, "postgres", &config.superuser, "pgherd", peer).await
}

/// Connects to another member as the role that may read its history.
pub(crate) async fn connect_upstream(
    config: &InstanceConfig,
    upstream: &Upstream,
) -> Result<Client, Error> {
    let mut pg = tokio_postgres::Config::new();
    pg.host(&upstream.host).port(upstream.port);
    pg.options("-c statement_timeout=5000 -c search_path=pg_catalog");
    pg.tcp_user_timeout(REMOTE_LIMIT.as_duration());
    let address = format!("{}:{}", upstream.host, upstream.port);
    let role = config.rewind_role();
    let peer = Server { address, secured: Some(role), limit: REMOTE_LIMIT };
    connect(pg, &config.database, role, "pgherd compare", peer).await
}

/// Where a connection goes.
pub(crate) struct Server<'a> {
    /// For messages.
    pub(crate) address: String,
    /// The role whose settings of TLS hold; `None` on a unix socket, which has none.
    pub(crate) secured: Option<&'a Credentials>,
    pub(crate) limit: Millis,
}

pub(crate) async fn connect(
    mut pg: tokio_postgres::Config,
    database: &str,
    role: &Credentials,
    application: &str,
    server: Server<'_>,
) -> Result<Client, Error> {
    pg.user(&role.username).dbname(database);
    pg.application_name(application);
    if let Some(password) = &role.password {
        pg.password(password.expose());
    }
    let address = &server.address;
    let failed =
        |message: String, starting| Error::Connect { address: address.clone(), message, starting };
    let security = server.secured.map_or_else(|| Ok(Security::none()), Security::of);
    let security = security.map_err(|error| failed(with_causes(&error), false))?;
    security.prepare(&mut pg);
    let limit = server.limit;
    match tokio::time::timeout(limit.as_duration(), connect_some_way(pg, &security)).await {
        Ok(Ok((client, connection))) => {
            // Ends by itself when the client is dropped; its error shows at the client.
            tokio::spawn(async move { connection.await.ok() });
            Ok(client)
        }
        Ok(Err(e)) => {
            let starting = e.code() == Some(&tokio_postgres::error::SqlState::CANNOT_CONNECT_NOW);
            Err(failed(describe(&e), starting))
        }
        Err(_) => Err(failed(format!("no answer within {limit}"), false)),
    }
}

type Connected =
    (Client, tokio_postgres::Connection<Socket, <Maker as MakeTlsConnect<Socket>>::Stream>);

/// With or without TLS, in the order that the settings say.
pub(crate) async fn connect_some_way(
    mut pg: tokio_postgres::Config,
    security: &Security,
) -> Result<Connected, tokio_postgres::Error> {
    let (last, others) = security.ways().split_last().expect("there is a way at least");
    for way in others {
        match pg.ssl_mode(*way).connect(security.maker()).await {
            Err(error) if may_try_again(&error) => {}
            done => return done,
        }
    }
    pg.ssl_mode(*last).connect(security.maker()).await
}

/// The server's message with its code, or the client's with its causes.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", db.message(), db.code().code());
    }
    with_causes(error)
}

pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Runs several statements in one round trip; one set of rows for each.
pub(crate) async fn row_sets(
    client: &Client,
    what: &'static str,
    statements: &str,
) -> Result<Vec<Vec<Row>>, Error> {
    let messages = client.simple_query(statements).await.map_err(|e| {
        let message = describe(&e);
        Error::Sql { what, message }
    })?;
    let (mut sets, mut rows) = (Vec::new(), Vec::new());
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => {
                let fields = (0..row.len()).map(|i| row.get(i).map(str::to_owned));
                rows.push(fields.collect());
            }
            SimpleQueryMessage::CommandComplete(_) => sets.push(std::mem::take(&mut rows)),
            _ => {} // row descriptions; the enum is not exhaustive
        }
    }
    Ok(sets)
}

/// Runs one statement.
pub(crate) async fn rows(
    client: &Client,
    what: &'static str,
    statement: &str,
) -> Result<Vec<Row>, Error> {
    let sets = row_sets(client, what, statement).await?;
    Ok(sets.into_iter().next_back().unwrap_or_default())
}

/// Runs one statement that gives one row; absent fields are empty strings.
pub(crate) async fn one_row(
    client: &Client,
    what: &'static str,
    statement: &str,
) -> Result<Vec<String>, Error> {
    let rows = rows(client, what, statement).await?;
    let Some(row) = rows.into_iter().next() else {
        let message = "no row came back".to_owned();
        return Err(Error::Sql { what, message });
    };
    Ok(row.into_iter().map(Option::unwrap_or_default).collect())
}

/// Bounds an operation.
pub(crate) async fn within<T>(
    limit: Millis,
    what: &str,
    work: impl Future<Output = Result<T, Error>> + Send,
) -> Result<T, Error> {
    match tokio::time::timeout(limit.as_duration(), work).await {
        Ok(done) => done,
        Err(_) => Err(Error::timed_out(what, limit)),
    }
}

/// Sleeps between polls.
pub(crate) async fn pause(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// A position, 0 if the field is absent.
pub(crate) fn lsn(text: Option<&str>) -> Lsn {
    text.and_then(Lsn::parse).unwrap_or_default()
}

/// A string literal, whatever `standard_conforming_strings` says.
pub(crate) fn literal(text: &str) -> String {
    let doubled = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{doubled}'")
}

/// A quoted identifier.
pub(crate) fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_identifiers_are_quoted() {
        assert_eq!(literal("a'b\\c"), "E'a''b\\\\c'");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}

//! An operator's query to one member, as whoever he says he is.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, SimpleQueryMessage};
use types::Millis;

use crate::config::Credentials;
use crate::secure::Security;
use crate::sql::{connect_some_way, with_causes};

/// Where a query goes, and as whom.
#[derive(Debug, Clone)]
pub struct QueryTarget {
    /// A host, or the directory of a unix socket.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Who logs in, and how.
    pub role: Credentials,
    /// The database.
    pub database: String,
    /// What the session is called.
    pub application: String,
}

/// What a column holds, as far as it matters for showing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `t` or `f`.
    Bool,
    /// A number.
    Number,
    /// JSON.
    Json,
    /// A time with a date.
    Timestamp,
    /// Anything else, and what is not known.
    Text,
}

/// The result of the last statement.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// The columns; `None` if the statement gives no rows.
    pub columns: Option<Vec<(String, Kind)>>,
    /// The rows as text; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Nobody was reached, or nobody let us in.
    #[error("connection to server at \"{host}\", port {port} failed: {detail}")]
    Connect {
        /// Where.
        host: String,
        /// Where.
        port: u16,
        /// What came back.
        detail: String,
    },
    /// The server has another role than the one that is wanted.
    #[error("the server is not what was asked for")]
    OtherRole,
    /// The statement failed.
    #[error("{message}")]
    Sql {
        /// Its code.
        sqlstate: Option<String>,
        /// What came back.
        message: String,
    },
}

/// Connects within `limit` and runs `sql`, which may take as long as it takes. `in_recovery`: what
/// the server has to be.
///
/// # Errors
/// It cannot be reached, is something else, or refuses the statement.
pub async fn query(
    target: &QueryTarget,
    limit: Millis,
    in_recovery: Option<bool>,
    sql: &str,
) -> Result<Answer, QueryError> {
    let client = connect(target, limit).await?;
    if let Some(wanted) = in_recovery {
        let said = run(&client, "SELECT pg_catalog.pg_is_in_recovery()").await?;
        let recovers = said.rows.first().and_then(|row| row.first()?.as_deref());
        if (recovers != Some("f")) != wanted {
            return Err(QueryError::OtherRole);
        }
    }
    let mut answer = run(&client, sql).await?;
    let Some(columns) = &mut answer.columns else { return Ok(answer) };
    // Several statements have no types that could be asked for; they are shown as text.
    if let Ok(statement) = client.prepare(sql).await {
        for (column, described) in columns.iter_mut().zip(statement.columns()) {
            column.1 = kind(described.type_());
        }
    }
    Ok(answer)
}

async fn connect(target: &QueryTarget, limit: Millis) -> Result<Client, QueryError> {
    let failed = |detail: String| QueryError::Connect {
        host: target.host.clone(),
        port: target.port,
        detail,
    };
    let mut pg = Config::new();
    pg.host(&target.host).port(target.port).user(&target.role.username).dbname(&target.database);
    pg.application_name(&target.application);
    if let Some(password) = &target.role.password {
        pg.password(password.expose());
    }
    let security = if target.host.starts_with('/') {
        Security::none()
    } else {
        Security::of(&target.role).map_err(|error| failed(with_causes(&error)))?
    };
    security.prepare(&mut pg);
    match tokio::time::timeout(limit.as_duration(), connect_some_way(pg, &security)).await {
        Ok(Ok((client, connection))) => {
            // Ends by itself when the client is dropped; its error shows at the client.
            tokio::spawn(async move { connection.await.ok() });
            Ok(client)
        }
        Ok(Err(error)) => Err(failed(match error.as_db_error() {
            Some(said) => format!("{}:  {}", said.severity(), said.message()),
            None => with_causes(&error),
        })),
        Err(_) => Err(failed(format!("no answer within {limit}"))),
    }
}

async fn run(client: &Client, sql: &str) -> Result<Answer, QueryError> {
    let messages = client.simple_query(sql).await.map_err(|error| QueryError::Sql {
        sqlstate: error.code().map(|code| code.code().to_owned()),
        message: with_causes(&error),
    })?;
    let (mut last, mut current) = (Answer::default(), Answer::default());
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                let columns = columns.iter().map(|column| (column.name().to_owned(), Kind::Text));
                current.columns = Some(columns.collect());
            }
            SimpleQueryMessage::Row(row) => {
                let fields = (0..row.len()).map(|i| row.get(i).map(str::to_owned));
                current.rows.push(fields.collect());
            }
            SimpleQueryMessage::CommandComplete(_) => last = std::mem::take(&mut current),
            _ => {} // The enum is not exhaustive.
        }
    }
    Ok(last)
}

fn kind(of: &Type) -> Kind {
    match *of {
        Type::BOOL => Kind::Bool,
        Type::INT2
        | Type::INT4
        | Type::INT8
        | Type::OID
        | Type::FLOAT4
        | Type::FLOAT8
        | Type::NUMERIC => Kind::Number,
        Type::JSON | Type::JSONB => Kind::Json,
        Type::TIMESTAMP | Type::TIMESTAMPTZ => Kind::Timestamp,
        _ => Kind::Text,
    }
}

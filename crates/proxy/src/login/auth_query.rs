//! What a server says about users, asked by the extended protocol on a session of the proxy's own.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::messages::{MessageError, Messages};
use super::secret::{StoredSecret, UnknownSecret};
use super::server::ServerRefusal;

/// The longest row, in bytes.
const ROW_BYTES_MAX: usize = 64 * 1024;
/// A user is a member of no more roles.
const ROLES_MAX: usize = 10_000;
/// Longer names no server knows (`NAMEDATALEN`); they are not asked for.
const NAME_BYTES_MAX: usize = 63;

/// The roles that a user is a member of, directly or not, itself among them. Superusers are members
/// of no others, as in `pg_hba.conf` (`is_member` in `hba.c`), so `pg_has_role` does not serve.
const STANDBY_QUERY: &str =
    "SELECT pid FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
const ROLES_QUERY: &str = "WITH RECURSIVE member (oid) AS (\
     SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1 \
     UNION SELECT a.roleid FROM pg_catalog.pg_auth_members a JOIN member ON a.member = member.oid) \
     SELECT rolname FROM pg_catalog.pg_roles JOIN member USING (oid)";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The server refused the query; the session goes on.
    #[error("the server refused the query about a user: {0}")]
    Refused(ServerRefusal),
    /// The answer is another one than was asked for; the session goes on.
    #[error("the query about a user answers {0}; it must give one row of name and password")]
    Answer(&'static str),
    /// The stored password is of no known form; the session goes on.
    #[error(transparent)]
    Secret(#[from] UnknownSecret),
    /// The session is of no use any more.
    #[error("the session for queries about users broke")]
    Session(#[from] MessageError),
    /// The session is of no use any more.
    #[error("no answer to a query about a user within {0:?}")]
    Timeout(Duration),
}

impl AskError {
    /// Whether the session can be asked again.
    #[must_use]
    pub fn session_goes_on(&self) -> bool {
        match self {
            AskError::Refused(_) | AskError::Answer(_) | AskError::Secret(_) => true,
            AskError::Session(_) | AskError::Timeout(_) => false,
        }
    }
}

/// What the server stores of a user's password, by a query that gives name and password; `None`
/// for a user that is not there or has none. The session must be idle.
///
/// Cancel safety: none, the session is of no use afterwards.
///
/// # Errors
/// [`AskError`]
pub async fn stored_secret<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    unread: &mut Vec<u8>,
    query: &str,
    user: &str,
    limit: Duration,
) -> Result<Option<StoredSecret>, AskError> {
    let rows = ask(stream, unread, query, user, 1, limit).await?;
    let Some(row) = rows.into_iter().next() else {
        return Ok(None);
    };
    let [name, secret] = row.as_slice() else {
        return Err(AskError::Answer("not two columns"));
    };
    // A query that does not hold to its parameter would let in who knows any password.
    if name.as_ref().is_none_or(|name| name.as_str() != user) {
        return Err(AskError::Answer("another user"));
    }
    match secret {
        Some(secret) if !secret.is_empty() => Ok(Some(StoredSecret::parse(secret)?)),
        Some(_) | None => Ok(None),
    }
}

/// The roles that a user is a member of; empty if there is no such user. The session must be idle.
///
/// Cancel safety: none, the session is of no use afterwards.
///
/// # Errors
/// [`AskError`]
pub async fn roles<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    unread: &mut Vec<u8>,
    user: &str,
    limit: Duration,
) -> Result<BTreeSet<String>, AskError> {
    let rows = ask(stream, unread, ROLES_QUERY, user, ROLES_MAX, limit).await?;
    let first = |row: Row| row.into_iter().next().flatten();
    Ok(rows.into_iter().filter_map(first).map(|name| name.to_string()).collect())
}

/// Whether the backend with this process number waits for a synchronous standby: the session that
/// asks must be of the same user, or may see everybody's.
///
/// # Errors
/// [`AskError`].
pub async fn waits_for_standby<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    unread: &mut Vec<u8>,
    process: u32,
    limit: Duration,
) -> Result<bool, AskError> {
    let rows = ask(stream, unread, STANDBY_QUERY, &process.to_string(), 1, limit).await?;
    Ok(!rows.is_empty())
}

type Row = Vec<Option<Zeroizing<String>>>;

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    unread: &mut Vec<u8>,
    query: &str,
    user: &str,
    rows_max: usize,
    limit: Duration,
) -> Result<Vec<Row>, AskError> {
    if user.len() > NAME_BYTES_MAX || user.contains('\0') || query.contains('\0') {
        return Ok(Vec::new());
    }
    let mut messages = Messages::new(stream, unread);
    let asked = async {
        messages.send(&question(query, user)).await?;
        answer(&mut messages, rows_max).await
    };
    timeout(limit, asked).await.unwrap_or(Err(AskError::Timeout(limit)))
}

/// Reads up to ReadyForQuery, so that the session can be asked again, whatever the answer is.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    messages: &mut Messages<'_, S>,
    rows_max: usize,
) -> Result<Vec<Row>, AskError> {
    let (mut rows, mut wrong) = (Vec::new(), None);
    loop {
        let message = messages.next(ROW_BYTES_MAX).await?;
        match message.tag {
            b'D' if rows.len() < rows_max => match row(&message.body) {
                Some(row) => rows.push(row),
                None => wrong = Some(AskError::Answer("a row that is no text")),
            },
            b'D' => wrong = Some(AskError::Answer("more rows")),
            b'E' => wrong = Some(AskError::Refused(ServerRefusal::new(&message.body))),
            b'Z' => return wrong.map_or(Ok(rows), Err),
            // ParseComplete, BindComplete, CommandComplete; notices and parameters.
            _ => {}
        }
    }
}

/// The values of a DataRow.
fn row(body: &[u8]) -> Option<Row> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        if length == -1 {
            values.push(None);
            rest = after;
            continue;
        }
        let (value, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        values.push(Some(Zeroizing::new(std::str::from_utf8(value).ok()?.to_owned())));
        rest = after;
    }
    rest.is_empty().then_some(values)
}

/// Parse, Bind, Execute and Sync of a query with one parameter, all of it text.
fn question(query: &str, parameter: &str) -> Vec<u8> {
    let length = u32::try_from(parameter.len()).unwrap_or(u32::MAX).to_be_bytes();
    let parse: [&[u8]; 3] = [b"\0", query.as_bytes(), b"\0\0\0"];
    let bind: [&[u8]; 4] = [b"\0\0\0\0\0\x01", &length, parameter.as_bytes(), b"\0\0"];
    let messages: [(u8, &[&[u8]]); 4] =
        [(b'P', &parse), (b'B', &bind), (b'E', &[b"\0\0\0\0\0"]), (b'S', &[])];
    let mut bytes = Vec::new();
    for (tag, parts) in messages {
        let body = parts.concat();
        bytes.push(tag);
        bytes.extend(u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(body);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_bounded() {
        let text = |row: Option<Row>| {
            let row = row?.into_iter().map(|value| value.map(|value| value.to_string()));
            Some(row.collect::<Vec<_>>())
        };
        let two = text(row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff"));
        assert_eq!(two, Some(vec![Some("a".to_owned()), None]));
        assert_eq!(text(row(b"\0\0")), Some(vec![]));
        for wrong in [
            &b""[..],
            b"\0\x01",
            b"\0\x01\0\0\0\x02a",
            b"\0\x01\xff\xff\xff\xfe",
            b"\0\0x",
            b"\0\x01\0\0\0\x01\xff",
        ] {
            assert_eq!(text(row(wrong)), None, "{wrong:?}");
        }
    }

    async fn asked(said: &[u8]) -> Result<Option<StoredSecret>, AskError> {
        let (mut near, mut far) = tokio::io::duplex(4096);
        tokio::io::AsyncWriteExt::write_all(&mut far, said).await.unwrap();
        let limit = Duration::from_secs(10);
        stored_secret(&mut near, &mut Vec::new(), "select $1, 'x'", "ann", limit).await
    }

    #[tokio::test]
    async fn only_one_row_about_the_user_counts() {
        let ready = &b"Z\0\0\0\x05I"[..];
        let row = |name: &str, secret: &str| {
            let value = |text: &str| {
                [&[0, 0, 0, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
            };
            let body = [&b"\0\x02"[..], &value(name), &value(secret)].concat();
            [&[b'D', 0, 0, 0, u8::try_from(body.len() + 4).unwrap()], &body[..]].concat()
        };
        assert_eq!(asked(ready).await.unwrap(), None);
        let found = asked(&[&row("ann", "hush"), ready].concat()).await.unwrap();
        assert!(matches!(found, Some(StoredSecret::Password(_))));
        assert_eq!(asked(&[&row("ann", ""), ready].concat()).await.unwrap(), None);
        for (said, says) in [
            (row("bob", "hush"), "another user"),
            ([row("ann", "hush"), row("ann", "hush")].concat(), "more rows"),
            (row("ann", "SCRAM-SHA-256$x"), "no verifier"),
            (b"E\0\0\0\x17SERROR\0C42501\0Mno\0\0".to_vec(), "no (SQLSTATE 42501)"),
        ] {
            let error = asked(&[&said, ready].concat()).await.unwrap_err();
            assert!(error.to_string().contains(says) && error.session_goes_on(), "{error}");
        }
        let broken = asked(b"D\0\0\0\x03").await.unwrap_err();
        assert!(!broken.session_goes_on());
    }
}

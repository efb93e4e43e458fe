//! Asks the primary where its WAL ends, and the replicas how far they have replayed, while clients
//! read from replicas on the primary's port. What follows from it is the router's.
//!
//! One question to each member is outstanding at most, each on a session that stays, and none is
//! waited for longer than [`ASK_LIMIT`]. Who cannot be asked has proven nothing: reads go to the
//! primary then.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use pgproto::wire::field_of;
use route::{Event, Target};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use types::{Lsn, MemberName};

use crate::hub::{Hub, Pool};
use crate::login::{MessageError, Messages, SignedIn};
use crate::open::{self, OpenError};
use crate::secure::Stream;

/// How often the primary is asked.
const PERIOD: Duration = Duration::from_millis(50);
/// After so many rounds in which nobody wanted to read the sessions are closed: five seconds.
const UNWANTED_ROUNDS: u32 = 100;
/// A question, with the login before the first one, is given up after this.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Who could not be asked is left alone for so long.
const RETRY: Duration = Duration::from_secs(1);
/// The longest message of an answer.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Of the primary; one that is in recovery answers with an error. What is inserted, not what is
/// flushed: a commit with `synchronous_commit` off is acknowledged before that.
const WAL_END: &str = "SELECT pg_catalog.concat_ws(' ', pg_catalog.pg_current_wal_insert_lsn(), \
     pg_catalog.current_setting('wal_block_size'), \
     pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')))";
/// Of a replica; none if it is one no more.
const REPLAYED: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() \
     THEN pg_catalog.pg_last_wal_replay_lsn() END";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("no client is there whose user could ask")]
    NoAsker,
    #[error("cannot open a session")]
    Open(#[from] OpenError),
    #[error("the session broke")]
    Session(#[from] MessageError),
    #[error("it says: {0}")]
    Refused(String),
    #[error("it does not say a position, as a server in the other role does not")]
    NoPosition,
    #[error("no answer within {ASK_LIMIT:?}")]
    Timeout,
}

/// A session of the prober's own.
#[derive(Debug)]
struct Session {
    stream: Stream,
    unread: Vec<u8>,
    target: Target,
}

/// How asking one member ended.
type Asked = (MemberName, Result<(Session, Lsn), AskError>);

struct Prober {
    hub: Arc<Hub>,
    /// Sessions that wait for the next question.
    sessions: BTreeMap<MemberName, Session>,
    /// Replicas that are being asked.
    asked: BTreeSet<MemberName>,
    asking: JoinSet<Asked>,
    /// Who could not be asked, and is not before this.
    failed: BTreeMap<MemberName, Instant>,
}

/// Asks for as long as it is polled, and while somebody wants to read.
pub(crate) async fn run(hub: Arc<Hub>) {
    loop {
        hub.rounds.wanted().await;
        let mut prober = Prober {
            hub: hub.clone(),
            sessions: BTreeMap::new(),
            asked: BTreeSet::new(),
            asking: JoinSet::new(),
            failed: BTreeMap::new(),
        };
        // A panic in it is logged with its task; everything begins anew.
        if let Err(error) = prober.while_wanted().await {
            tracing::error!(%error, "asking a replica panicked");
        }
    }
}

impl Prober {
    async fn while_wanted(&mut self) -> Result<(), JoinError> {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unwanted = 0;
        while unwanted < UNWANTED_ROUNDS {
            tokio::select! {
                _ = period.tick() => {
                    unwanted = if self.hub.rounds.take_wanted() { 0 } else { unwanted + 1 };
                    self.round().await;
                }
                Some(answer) = self.asking.join_next() => {
                    let (member, result) = answer?;
                    self.asked.remove(&member);
                    let lsn = self.keep(&member, result);
                    self.hub.tell_position(Event::Replayed { member, lsn });
                }
            }
        }
        Ok(())
    }

    /// Asks the primary, then each replica that is not being asked.
    async fn round(&mut self) {
        let Some((primary, term, replicas)) = self.hub.whom_to_ask() else {
            return;
        };
        let is_there = |name: &MemberName| {
            *name == primary.member || replicas.iter().any(|replica| replica.member == *name)
        };
        self.sessions.retain(|name, _| is_there(name));
        self.failed.retain(|name, _| is_there(name));
        let member = primary.member.clone();
        if !self.may_ask(&member) {
            return;
        }
        let session = self.session(&primary);
        // Whatever was acknowledged before this lies below the answer.
        let round = self.hub.rounds.begin();
        let answer = ask(&self.hub, primary, session, WAL_END).await;
        let Some(lsn) = self.keep(&member, answer) else {
            return;
        };
        self.hub.tell_position(Event::WalEnds { round, member, term, lsn });
        for replica in replicas {
            let member = replica.member.clone();
            if !self.may_ask(&member) || !self.asked.insert(member.clone()) {
                continue;
            }
            let (hub, session) = (self.hub.clone(), self.session(&replica));
            self.asking.spawn(async move {
                let answer = ask(&hub, replica, session, REPLAYED).await;
                (member, answer)
            });
        }
    }

    fn may_ask(&self, member: &MemberName) -> bool {
        self.failed.get(member).is_none_or(|until| Instant::now() >= *until)
    }

    /// The session with this server; one with another of the same name is closed.
    fn session(&mut self, target: &Target) -> Option<Session> {
        self.sessions.remove(&target.member).filter(|session| session.target == *target)
    }

    /// Keeps the session for the next question. What changes is told once.
    fn keep(
        &mut self,
        member: &MemberName,
        result: Result<(Session, Lsn), AskError>,
    ) -> Option<Lsn> {
        match result {
            Ok((session, lsn)) => {
                self.sessions.insert(member.clone(), session);
                if self.failed.remove(member).is_some() {
                    tracing::info!(%member, "says its position in the WAL again");
                }
                Some(lsn)
            }
            Err(error) => {
                let until = Instant::now().checked_add(RETRY).unwrap_or_else(Instant::now);
                if self.failed.insert(member.clone(), until).is_none() {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(
                        %member, %error, cause,
                        "cannot ask for its position in the WAL; reads it is needed for go to the \
                         primary"
                    );
                }
                None
            }
        }
    }
}

async fn ask(
    hub: &Hub,
    target: Target,
    session: Option<Session>,
    question: &str,
) -> Result<(Session, Lsn), AskError> {
    let asked = async {
        let mut session = match session {
            Some(session) => session,
            None => {
                let pool = hub.rounds.asker().ok_or(AskError::NoAsker)?;
                open_session(hub, &pool, target).await?
            }
        };
        let lsn = position(&mut session, question).await?;
        Ok((session, lsn))
    };
    timeout(ASK_LIMIT, asked).await.unwrap_or(Err(AskError::Timeout))
}

async fn open_session(hub: &Hub, pool: &Pool, target: Target) -> Result<Session, AskError> {
    let (stream, SignedIn { unread, .. }) = open::signed_in(hub, pool, &target).await?;
    Ok(Session { stream, unread, target })
}

/// The only value of the only row.
async fn position(session: &mut Session, question: &str) -> Result<Lsn, AskError> {
    let mut messages = Messages::new(&mut session.stream, &mut session.unread);
    messages.send(&query(question)?).await?;
    let mut answer = Err(AskError::NoPosition);
    loop {
        let message = messages.next(ANSWER_BYTES_MAX).await?;
        match message.tag {
            b'D' => answer = value(&message.body).and_then(said).ok_or(AskError::NoPosition),
            b'E' => {
                let text = field_of(&message.body, b'M').unwrap_or_default();
                answer = Err(AskError::Refused(String::from_utf8_lossy(text).into_owned()));
            }
            b'Z' => return answer,
            // RowDescription, CommandComplete; notices and parameters.
            _ => {}
        }
    }
}

fn query(text: &str) -> Result<Vec<u8>, MessageError> {
    let length = u32::try_from(text.len() + 5)
        .map_err(|error| MessageError::Broken(io::Error::other(error)))?;
    Ok([b"Q", &length.to_be_bytes()[..], text.as_bytes(), b"\0"].concat())
}

/// The position that an answer to [`WAL_END`] or [`REPLAYED`] says.
fn said(answer: &str) -> Option<Lsn> {
    let mut words = answer.split(' ');
    let lsn = Lsn::parse(words.next()?)?;
    let Some(block) = words.next() else {
        return Some(lsn);
    };
    Some(lsn.end_of_record(block.parse().ok()?, words.next()?.parse().ok()?))
}

/// The text of a DataRow with one value that is not null.
fn value(body: &[u8]) -> Option<&str> {
    let rest = body.strip_prefix(&[0, 1])?;
    let (length, value) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
    std::str::from_utf8(value).ok().filter(|value| value.len() == length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_wal_ends_is_where_its_last_record_ends() {
        assert_eq!(said("0/4000028"), Some(Lsn(0x400_0028)), "a replica's");
        let primary = |lsn: &str| said(&format!("{lsn} 8192 16777216"));
        assert_eq!(primary("0/4000028"), Some(Lsn(0x400_0000)), "nothing is in the segment yet");
        assert_eq!(primary("0/4002028"), Some(Lsn(0x400_2028)), "a record's last 16 bytes");
        assert_eq!(primary("0/4002018"), Some(Lsn(0x400_2000)), "nothing is in the block yet");
        assert_eq!(primary("0/4000090"), Some(Lsn(0x400_0090)));
        assert_eq!(said("0/1 0 0"), Some(Lsn(1)));
        for other in ["", "0", "0/1 x 1", "0/1 1", "0/1 8192 -1"] {
            assert_eq!(said(other), None, "{other}");
        }
    }

    #[test]
    fn one_value_is_read_and_nothing_else() {
        assert_eq!(value(b"\0\x01\0\0\0\x030/1"), Some("0/1"));
        for other in [
            &b""[..],
            b"\0\x01",
            b"\0\x01\xff\xff\xff\xff",
            b"\0\x01\0\0\0\x040/1",
            b"\0\x02\0\0\0\x010\0\0\0\x011",
            b"\0\x01\0\0\0\x01\xff",
        ] {
            assert_eq!(value(other), None, "{other:?}");
        }
    }
}

//! What we ask of another member's REST interface.

use std::collections::BTreeMap;
use std::time::Duration;

use api::RestClient;
use decide::foreign::ForeignAnswer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use types::{Lsn, Member, MemberName, Millis, RestAddress, Term, Timeline};

/// A question to a peer is given up after this; it is asked again at once by whoever needs it.
const LIMIT: Duration = Duration::from_millis(500);

/// Whether the standby behind this REST address has received everything up to `end`. It answers
/// as soon as it has.
pub(crate) async fn has_received(rest: &RestClient, address: &RestAddress, end: Lsn) -> bool {
    let path = format!("/received?lsn={}", end.0);
    let answer = rest.request("GET", address, &path, None, None, LIMIT).await;
    let Ok((_, body)) = answer else {
        return false;
    };
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    // Patroni answers as to a health check, at once, with what its PostgreSQL has received.
    let received = answer["received"].as_u64().or(answer["xlog"]["received_location"].as_u64());
    received.is_some_and(|received| Lsn(received) >= end)
}

/// The newest term that any of these members knows of, asked all at once.
pub(crate) async fn newest_term(
    rest: &RestClient,
    members: &BTreeMap<MemberName, String>,
    limit: Millis,
) -> Option<Term> {
    let mut answers = JoinSet::new();
    for url in members.values() {
        let member = Member { api_url: url.clone(), ..Member::default() };
        let Some(address) = member.api_address() else { continue };
        let rest = rest.clone();
        answers.spawn(async move {
            let limit = limit.as_duration();
            let answer = rest.request("GET", &address, "/cluster", None, None, limit);
            let (_, body) = answer.await.ok()?;
            let cluster: serde_json::Value = serde_json::from_slice(&body).ok()?;
            cluster.get("term")?.as_u64().map(Term)
        });
    }
    let mut newest = None;
    while let Some(answer) = answers.join_next().await {
        // Who does not answer knows of nothing.
        newest = newest.max(answer.ok().flatten());
    }
    newest
}

/// What each of these members, asked all at once, says of its PostgreSQL; `None` for one that gives
/// no answer, or none that says so.
pub(crate) async fn positions(
    rest: &RestClient,
    members: &BTreeMap<MemberName, String>,
    limit: Millis,
) -> BTreeMap<MemberName, Option<ForeignAnswer>> {
    let mut answers = JoinSet::new();
    for (name, url) in members {
        let member = Member { api_url: url.clone(), ..Member::default() };
        let (name, rest) = (name.clone(), rest.clone());
        answers.spawn(async move {
            let answer = match member.api_address() {
                Some(address) => position(&rest, &address, limit.as_duration()).await,
                None => None,
            };
            (name, answer)
        });
    }
    let mut found: BTreeMap<_, _> = members.keys().map(|name| (name.clone(), None)).collect();
    while let Some(answer) = answers.join_next().await {
        found.extend(answer);
    }
    found
}

async fn position(
    rest: &RestClient,
    address: &RestAddress,
    limit: Duration,
) -> Option<ForeignAnswer> {
    let answer = rest.request("GET", address, "/patroni", None, None, limit).await;
    let status: serde_json::Value = serde_json::from_slice(&answer.ok()?.1).ok()?;
    let xlog = &status["xlog"];
    let at = |field: &str| xlog[field].as_u64().map(Lsn);
    if at("location").is_some() || matches!(status["role"].as_str(), Some("primary" | "master")) {
        return Some(ForeignAnswer::Primary);
    }
    let lsn = at("received_location").max(at("replayed_location"))?;
    let timeline = status["timeline"].as_u64().and_then(|number| u32::try_from(number).ok());
    Some(ForeignAnswer::Standby { timeline: Timeline(timeline.unwrap_or(0)), lsn })
}

/// A lost first packet is sent again by the kernel only after a second, which is too late: a second
/// connection is begun meanwhile.
const KNOCK_AGAIN: Duration = Duration::from_millis(150);

/// SSLRequest, which any postmaster answers with one byte before anybody logs in (PostgreSQL's
/// documentation, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Whether a PostgreSQL answers at this address; else what came instead.
pub(crate) async fn postgres_answers(host: &str, port: u16, limit: Millis) -> Result<(), String> {
    let knock = async || {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_u8().await
    };
    let again = async {
        tokio::time::sleep(KNOCK_AGAIN).await;
        knock().await
    };
    let knocks = async {
        tokio::select! {
            answer = knock() => answer,
            answer = again => answer,
        }
    };
    match tokio::time::timeout(limit.as_duration(), knocks).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("knocking at {host}:{port}: {error}")),
        Err(_) => Err(format!("knocking at {host}:{port}: no answer within {limit}")),
    }
}

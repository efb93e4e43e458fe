//! Going on without the DCS: what a leader asks of the other members, and what they answer.

use std::collections::BTreeMap;

use api::{ApiReply, FailsafePost, RestClient};
use decide::{FailsafeAnswer, FailsafeClaim};
use postgres::Instance;
use serde_json::json;
use tokio::task::JoinSet;
use types::{DurablePromise, Lsn, Member, MemberName, Millis, Term};

use crate::context::Context;

/// What a leader says to the members.
pub(crate) struct Question {
    pub(crate) term: Term,
    pub(crate) ttl: Millis,
    pub(crate) slots: BTreeMap<String, Lsn>,
}

/// Asks every member at once. All must answer 200 `Accepted` within `limit`; otherwise the text
/// says who did not. Nothing is sent before this is called. Returns what each holds.
pub(crate) async fn ask<I: Instance>(
    context: &Context<I>,
    members: &BTreeMap<MemberName, String>,
    question: &Question,
    limit: Millis,
) -> Result<BTreeMap<MemberName, Lsn>, String> {
    let body = body(context, question);
    let auth = context.rest_credentials.clone();
    let rest = context.rest();
    let mut answers = JoinSet::new();
    for (name, url) in members {
        let (name, url, body, auth) = (name.clone(), url.clone(), body.clone(), auth.clone());
        let rest = rest.clone();
        answers.spawn(async move {
            let answer = ask_one(&rest, &url, body, auth, limit).await;
            answer.map_err(|why| format!("{name}: {why}")).map(|held| (name, held))
        });
    }
    let (mut missing, mut held) = (Vec::new(), BTreeMap::new());
    while let Some(answer) = answers.join_next().await {
        match answer {
            Ok(Ok((name, Some(lsn)))) => _ = held.insert(name, lsn),
            Ok(Ok((_, None))) => {}
            Ok(Err(why)) => missing.push(why),
            // A question whose task failed was not answered.
            Err(error) => missing.push(error.to_string()),
        }
    }
    missing.sort();
    if missing.is_empty() { Ok(held) } else { Err(missing.join("; ")) }
}

/// Patroni's fields, and ours beside them, which it ignores.
fn body<I>(context: &Context<I>, question: &Question) -> Vec<u8> {
    let view = context.store.current().view;
    let me = view.as_ref().and_then(|v| v.member(&context.name));
    let body = json!({
        "name": context.name,
        "conn_url": me.map(|m| m.conn_url.clone()),
        "api_url": me.map(|m| m.api_url.clone()),
        "slots": question.slots,
        "pgherd_term": question.term,
        "pgherd_ttl_ms": question.ttl,
    });
    body.to_string().into_bytes()
}

async fn ask_one(
    rest: &RestClient,
    url: &str,
    body: Vec<u8>,
    auth: Option<(String, String)>,
    limit: Millis,
) -> Result<Option<Lsn>, String> {
    let member = Member { api_url: url.to_owned(), ..Member::default() };
    let Some(address) = member.api_address() else {
        return Err(format!("{url:?} is no address of a REST interface"));
    };
    let auth = auth.as_ref().map(|(user, password)| (user.as_str(), password.as_str()));
    let limit = limit.as_duration();
    let answer = rest.ask("POST", &address, "/failsafe", Some(body), auth, limit);
    match answer.await {
        Ok(answer) if answer.status == 200 && answer.body == b"Accepted" => {
            Ok(answer.lsn.map(Lsn).filter(|lsn| *lsn > Lsn(0)))
        }
        Ok(answer) => Err(format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body))),
        Err(error) => Err(crate::execute::with_sources(&error)),
    }
}

/// What a leader said, for the brain.
pub(crate) fn claim_of(post: &FailsafePost) -> FailsafeClaim {
    FailsafeClaim {
        leader: post.leader.clone(),
        term: post.term,
        ttl: post.ttl.unwrap_or(Millis::ZERO),
        slots: post.slots.clone(),
    }
}

/// The brain's answer as a REST answer; without one nothing is promised.
pub(crate) fn reply_of(answer: Option<FailsafeAnswer>) -> ApiReply {
    let (status, text) = match answer {
        Some(FailsafeAnswer::Accepted) => (200, "Accepted"),
        Some(FailsafeAnswer::RunningAsLeader) => (500, "Running as a leader"),
        Some(FailsafeAnswer::Off) => (502, "failsafe_mode is off"),
        Some(FailsafeAnswer::Refused(why)) => (503, why),
        None => (503, "the agent has not taken it in"),
    };
    ApiReply { status, text: text.to_owned(), written: None }
}

/// Writes a promise down before it is given: the next agent is bound by it, too.
pub(crate) async fn keep<I: Instance>(
    context: &Context<I>,
    promise: Option<DurablePromise>,
    reply: ApiReply,
) -> ApiReply {
    if reply.status != 200 {
        return reply;
    }
    let kept = context.recorded.update(move |durable| durable.promise = promise).await;
    match kept {
        Ok(()) => reply,
        Err(error) => {
            tracing::error!(%error, "a promise to a leader without the DCS was not recorded");
            let text = "the promise could not be recorded".to_owned();
            ApiReply { status: 500, text, ..reply }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A member that gives this answer to whoever asks; `None`: it never answers.
    async fn member(answer: Option<&'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap_or(0);
                assert!(request[..read].starts_with(b"POST /failsafe HTTP/1.1"));
                if let Some(answer) = answer {
                    stream.write_all(answer.as_bytes()).await.expect("the asker reads");
                } else {
                    held.push(stream);
                }
            }
        });
        format!("http://127.0.0.1:{port}/patroni")
    }

    async fn check(answer: Option<&'static str>) -> Result<Option<Lsn>, String> {
        let url = member(answer).await;
        ask_one(&RestClient::default(), &url, b"{}".to_vec(), None, Millis(500)).await
    }

    #[tokio::test]
    async fn only_accepted_is_an_agreement() {
        let accepted = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nAccepted";
        assert_eq!(check(Some(accepted)).await, Ok(None));
        let held = "HTTP/1.1 200 OK\r\nlsn: 768\r\ncontent-length: 8\r\n\r\nAccepted";
        assert_eq!(check(Some(held)).await, Ok(Some(Lsn(0x300))));
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK",
            "HTTP/1.1 202 Accepted\r\ncontent-length: 8\r\n\r\nAccepted",
            "HTTP/1.1 500 X\r\ncontent-length: 19\r\n\r\nRunning as a leader",
            "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nAccepted",
        ] {
            assert!(check(Some(other)).await.is_err(), "{other}");
        }
        assert!(check(None).await.is_err(), "silence is none");
        assert!(
            ask_one(&RestClient::default(), "nonsense", Vec::new(), None, Millis(500))
                .await
                .is_err()
        );
    }

    #[test]
    fn answers_are_patronis() {
        assert_eq!(reply_of(Some(FailsafeAnswer::Accepted)).text, "Accepted");
        assert_eq!(reply_of(Some(FailsafeAnswer::RunningAsLeader)).status, 500);
        assert_eq!(reply_of(Some(FailsafeAnswer::Off)).status, 502);
        assert_ne!(reply_of(None).status, 200);
    }
}

//! One watch stream on a prefix, with a check that its peer still lives.

use std::sync::Arc;
use std::time::Duration;

use etcd_proto::etcdserverpb as pb;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::mvccpb::Event;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use types::Revision;

use crate::attempt::{Caller, Kind, Link};
use crate::client::Client;
use crate::endpoints::Node;
use crate::error::Error;
use crate::txn::range_end;

/// A stream that is silent for this long although it is asked for a sign of life is taken for dead:
/// its member may have been lost with the primary's host, and who learns of that late votes late.
/// Being wrong costs a listing.
const PATIENCE: Duration = Duration::from_millis(800);
/// Between questions. The member answers them by itself, without its peers.
const QUESTION_INTERVAL: Duration = Duration::from_millis(200);
/// Questions that wait to be sent.
const QUESTIONS_QUEUED: usize = 4;

/// An open watch.
pub(crate) struct Watch {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
    heard: Instant,
    caller: Arc<Caller>,
    node: Arc<Node>,
}

/// Events of whole revisions, in order.
pub(crate) struct Batch {
    pub(crate) cluster_id: u64,
    pub(crate) events: Vec<Event>,
}

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchEnd {
    #[error("the watch fell behind a compaction at revision {0}")]
    Compacted(i64),
    #[error("the watch broke: {0}")]
    Broken(String),
    #[error("the watch was silent for {0:?}, its member {1} is taken for dead")]
    Silent(Duration, String),
}

impl Watch {
    /// Opens a watch on `prefix` from `start` (inclusive); returns when etcd has confirmed it.
    pub(crate) async fn open(
        client: &Client,
        prefix: &str,
        start: Revision,
    ) -> Result<Watch, Error> {
        let create = pb::WatchCreateRequest {
            key: prefix.as_bytes().to_vec(),
            range_end: range_end(prefix),
            start_revision: start.0,
            ..pb::WatchCreateRequest::default()
        };
        let caller = client.caller().clone();
        let call = move |link| open_on(link, create.clone(), caller.clone());
        client.caller().run("watching the cluster's keys", Kind::Read, client.budget(), call).await
    }

    /// The next events.
    ///
    /// Cancel safety: safe; no message is lost, as the stream keeps what was received.
    pub(crate) async fn next(&mut self) -> Result<Batch, WatchEnd> {
        loop {
            let message = match timeout(QUESTION_INTERVAL, self.answers.message()).await {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return Err(WatchEnd::Broken("the member closed it".to_owned())),
                Ok(Err(status)) => return Err(WatchEnd::Broken(status.message().to_owned())),
                Err(_) => {
                    self.ask()?;
                    continue;
                }
            };
            self.heard = Instant::now();
            // So calls go first where it is known that somebody answers.
            self.caller.endpoints.heard(&self.node);
            if message.compact_revision > 0 {
                return Err(WatchEnd::Compacted(message.compact_revision));
            }
            if message.canceled {
                return Err(WatchEnd::Broken(message.cancel_reason));
            }
            // An answer to our question says that the member lives and no more: older etcd sends it
            // ahead of events, so its revision must not be taken for progress (etcd issue 15220).
            if message.events.is_empty() {
                continue;
            }
            let cluster_id = message.header.map_or(0, |h| h.cluster_id);
            let events = message.events;
            return Ok(Batch { cluster_id, events });
        }
    }

    fn ask(&self) -> Result<(), WatchEnd> {
        if self.heard.elapsed() >= PATIENCE {
            self.caller.endpoints.node_silent(&self.node);
            return Err(WatchEnd::Silent(PATIENCE, self.node.url.clone()));
        }
        let question = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
        // A full queue means that the connection takes nothing; the patience above ends that.
        drop(self.requests.try_send(request(question)));
        Ok(())
    }
}

fn request(union: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest { request_union: Some(union) }
}

async fn open_on(
    link: Link,
    create: pb::WatchCreateRequest,
    caller: Arc<Caller>,
) -> Result<Watch, Status> {
    let (requests, rest) = mpsc::channel(QUESTIONS_QUEUED);
    let create = request(RequestUnion::CreateRequest(create));
    if requests.try_send(create).is_err() {
        return Err(Status::internal("the watch stream took no request"));
    }
    let stream = link.request(ReceiverStream::new(rest));
    let mut answers = link.watch().watch(stream).await?.into_inner();
    match answers.message().await? {
        Some(first) if first.created && !first.canceled => {
            Ok(Watch { requests, answers, heard: Instant::now(), caller, node: link.node })
        }
        Some(first) => Err(refused(&first)),
        None => Err(Status::unavailable("the watch stream ended")),
    }
}

fn refused(first: &pb::WatchResponse) -> Status {
    if first.compact_revision > 0 {
        return Status::out_of_range("the watch's revision has been compacted");
    }
    let reason = first.cancel_reason.as_str();
    if reason.contains("permission denied") {
        return Status::permission_denied(reason);
    }
    if reason.contains("token") || reason.contains("user name is empty") {
        return Status::unauthenticated(reason);
    }
    Status::unavailable(format!("the watch was not created: {reason}"))
}

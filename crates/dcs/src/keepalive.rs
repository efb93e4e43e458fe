//! Lease keep-alive, one question and one answer at a time, on a stream that is kept per endpoint.

use std::sync::{Mutex, PoisonError};

use etcd_proto::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::attempt::Link;

/// Holds an endpoint's idle keep-alive stream. Whoever asks takes it out, and puts it back only
/// after its own answer: a stream left in the middle of a question is dropped with its asker, so no
/// answer can be taken for that of a later question.
#[derive(Default)]
pub(crate) struct KeepAliveSlot(Mutex<Option<Stream>>);

struct Stream {
    questions: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl KeepAliveSlot {
    fn take(&self) -> Option<Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, stream: Stream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    }
}

/// Asks for one more TTL of `lease`. The caller sets the deadline.
pub(crate) async fn ask(link: Link, lease: i64) -> Result<LeaseKeepAliveResponse, Status> {
    if let Some(mut stream) = link.node.keep_alive.take()
        && let Ok(answer) = stream.ask(lease).await
    {
        link.node.keep_alive.put(stream);
        return Ok(answer);
    }
    // No stream, or its connection had died: a keep-alive may be asked twice.
    let (questions, rest) = mpsc::channel(1);
    let question = LeaseKeepAliveRequest { id: lease };
    if questions.try_send(question).is_err() {
        return Err(Status::internal("the keep-alive stream took no question"));
    }
    let request = link.request(ReceiverStream::new(rest));
    let answers = link.lease().lease_keep_alive(request).await?.into_inner();
    let mut stream = Stream { questions, answers };
    let answer = stream.answer(lease).await?;
    link.node.keep_alive.put(stream);
    Ok(answer)
}

impl Stream {
    async fn ask(&mut self, lease: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let question = LeaseKeepAliveRequest { id: lease };
        if self.questions.send(question).await.is_err() {
            return Err(Status::unavailable("the keep-alive stream is closed"));
        }
        self.answer(lease).await
    }

    async fn answer(&mut self, lease: i64) -> Result<LeaseKeepAliveResponse, Status> {
        match self.answers.message().await? {
            Some(answer) if answer.id == lease => Ok(answer),
            Some(_) => Err(Status::internal("the answer is for another lease")),
            None => Err(Status::unavailable("the keep-alive stream ended")),
        }
    }
}

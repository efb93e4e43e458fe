//! One call, spread over the endpoints: attempts, hedging, authentication, error classes.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_proto::etcdserverpb::AuthenticateRequest;
use etcd_proto::etcdserverpb::auth_client::AuthClient;
use etcd_proto::etcdserverpb::cluster_client::ClusterClient;
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::watch_client::WatchClient;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use types::{Millis, Revision};

use crate::endpoints::{Endpoints, Node};
use crate::error::{Ambiguity, Error, Fault, Refusal, classify};

/// An attempt without an answer is joined by one to the next endpoint after this at most.
const HEDGE_MAX: Duration = Duration::from_millis(500);
/// And not before this, so that a slow etcd is not asked three times over.
const HEDGE_MIN: Duration = Duration::from_millis(50);
/// An attempt is given up after this part of `retry_timeout`: a member may sit on a request that
/// it forwarded to a raft leader that has died since.
const ATTEMPTS_PER_BUDGET: u32 = 3;
/// But not earlier than this.
const ATTEMPT_MIN: Duration = Duration::from_secs(1);
/// Pause after every endpoint has failed once; it doubles up to the second one.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
const ROUND_PAUSE_MAX: Duration = Duration::from_millis(800);
/// Longest answer that is decoded.
const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// User and password.
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
}

/// What the server said about our credentials last.
#[derive(Clone, Default)]
enum Token {
    #[default]
    Unknown,
    /// Authentication is off on the server.
    NotNeeded,
    Valid(MetadataValue<Ascii>),
}

/// Runs calls on the endpoints.
pub(crate) struct Caller {
    pub(crate) endpoints: Endpoints,
    pub(crate) credentials: Option<Credentials>,
    token: Mutex<Token>,
}

/// One endpoint, ready for a call.
pub(crate) struct Link {
    pub(crate) node: Arc<Node>,
    token: Option<MetadataValue<Ascii>>,
}

/// What a call does to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing, or nothing that is not safe to do twice and to find done.
    Read,
    /// A write that may be repeated.
    Repeatable,
}

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) limit: Millis,
    pub(crate) deadline: Instant,
}

impl Budget {
    pub(crate) fn start(limit: Millis) -> Budget {
        Budget { limit, deadline: Instant::now() + limit.as_duration() }
    }
}

impl Link {
    /// A request with our metadata. etcd refuses it at once, undone, while it knows no raft leader.
    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &self.token {
            metadata.insert("authorization", token.clone());
        }
        request
    }

    pub(crate) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.node.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.node.channel())
    }

    pub(crate) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.node.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.node.channel())
    }
}

impl Caller {
    pub(crate) fn new(endpoints: Endpoints, credentials: Option<Credentials>) -> Caller {
        Caller { endpoints, credentials, token: Mutex::new(Token::default()) }
    }

    /// Runs `call` until an endpoint answers it or the budget is spent.
    ///
    /// Cancel safety: dropping the future cancels the attempts; a write may still happen.
    pub(crate) async fn run<T, F, Fut>(
        self: &Arc<Self>,
        operation: &'static str,
        kind: Kind,
        budget: Budget,
        call: F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Fn(Link) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<T, Status>> + Send,
    {
        let mut round = Round::new(self.clone(), budget);
        let mut attempts: JoinSet<(usize, Result<T, Fault>)> = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                Some(ended) = attempts.join_next() => match ended {
                    Ok((index, Ok(answer))) => {
                        round.won(index);
                        return Ok(answer);
                    }
                    Ok((index, Err(fault))) => {
                        if let Fault::Final(reason, detail) = fault {
                            self.endpoints.answered(index);
                            return Err(Error::Refused { operation, reason, detail });
                        }
                        round.lost(index, fault);
                    }
                    // An attempt is never aborted while we wait for it, so it panicked; its
                    // endpoint stays marked as busy and the others are tried.
                    Err(_) => round.next_start = Instant::now(),
                },
                () = sleep_until(budget.deadline) => return Err(round.spent(operation, kind)),
                () = sleep_until(round.next_start), if round.idle().is_some() => {
                    if let Some(index) = round.idle() {
                        let deadline = round.begin(index);
                        let (caller, call) = (self.clone(), call.clone());
                        attempts.spawn(async move {
                            (index, caller.attempt(index, deadline, call).await)
                        });
                    }
                }
            }
        }
    }

    /// One attempt on one endpoint.
    pub(crate) async fn attempt<T, F, Fut>(
        &self,
        index: usize,
        deadline: Instant,
        call: F,
    ) -> Result<T, Fault>
    where
        F: FnOnce(Link) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let Some(node) = self.endpoints.nodes.get(index).cloned() else {
            return Err(Fault::NotSent("no such endpoint".to_owned()));
        };
        let url = node.url.clone();
        let named = |text: String| format!("{url}: {text}");
        let link = match timeout_at(deadline, self.link(node)).await {
            Ok(link) => link?,
            Err(_) => return Err(Fault::NotSent(named("no answer to authenticate".into()))),
        };
        match timeout_at(deadline, call(link)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(self.fault(&status, named)),
            Err(_) => {
                self.endpoints.silent(index);
                Err(Fault::Unanswered(named("no answer in time".into())))
            }
        }
    }

    fn fault(&self, status: &Status, named: impl Fn(String) -> String) -> Fault {
        match classify(status) {
            Fault::NotSent(text) => Fault::NotSent(named(text)),
            Fault::Unanswered(text) => Fault::Unanswered(named(text)),
            Fault::Elsewhere(text) => Fault::Elsewhere(named(text)),
            Fault::Final(reason, text) => Fault::Final(reason, named(text)),
            Fault::Token(text) if self.credentials.is_none() => {
                Fault::Final(Refusal::Authentication, named(text))
            }
            Fault::Token(text) => {
                self.set_token(Token::Unknown);
                Fault::Token(named(text))
            }
        }
    }

    /// The endpoint with a token, if the server wants one.
    async fn link(&self, node: Arc<Node>) -> Result<Link, Fault> {
        let Some(credentials) = &self.credentials else {
            return Ok(Link { node, token: None });
        };
        let known = self
            .token
            .lock()
            .map_or_else(|poisoned| poisoned.into_inner().clone(), |token| token.clone());
        let token = match known {
            Token::NotNeeded => None,
            Token::Valid(token) => Some(token),
            Token::Unknown => {
                let token = authenticate(&node, credentials).await?;
                let known = token.clone().map_or(Token::NotNeeded, Token::Valid);
                self.set_token(known);
                token
            }
        };
        Ok(Link { node, token })
    }

    fn set_token(&self, token: Token) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }
}

/// Gets a token; `None` if authentication is off.
async fn authenticate(
    node: &Node,
    credentials: &Credentials,
) -> Result<Option<MetadataValue<Ascii>>, Fault> {
    let request = AuthenticateRequest {
        name: credentials.username.clone(),
        password: credentials.password.clone(),
    };
    let mut client = AuthClient::new(node.channel());
    match client.authenticate(request).await {
        Ok(answer) => match answer.into_inner().token.parse() {
            Ok(token) => Ok(Some(token)),
            Err(_) => Err(Fault::Elsewhere("the token is not ASCII".to_owned())),
        },
        Err(status) if status.code() == Code::FailedPrecondition => Ok(None),
        // The call proper was not sent, whatever became of this one.
        Err(status) => Err(match classify(&status) {
            Fault::Unanswered(text) | Fault::Token(text) => Fault::NotSent(text),
            other @ (Fault::NotSent(_) | Fault::Elsewhere(_) | Fault::Final(..)) => other,
        }),
    }
}

/// The state of one call: which endpoints are being asked, and when the next one is.
struct Round {
    caller: Arc<Caller>,
    budget: Budget,
    order: Vec<usize>,
    cursor: usize,
    /// When each endpoint was asked, while its answer is out.
    busy: Vec<Option<Instant>>,
    failures: usize,
    pause: Duration,
    perhaps_executed: bool,
    last: Option<Fault>,
    next_start: Instant,
}

impl Round {
    fn new(caller: Arc<Caller>, budget: Budget) -> Round {
        let order = caller.endpoints.order();
        Round {
            budget,
            busy: vec![None; order.len()],
            order,
            caller,
            cursor: 0,
            failures: 0,
            pause: ROUND_PAUSE,
            perhaps_executed: false,
            last: None,
            next_start: Instant::now(),
        }
    }

    /// The next endpoint that is not being asked.
    fn idle(&self) -> Option<usize> {
        let n = self.order.len();
        (0..n)
            .filter_map(|i| self.order.get((self.cursor + i) % n).copied())
            .find(|&index| self.busy.get(index) == Some(&None))
    }

    /// Marks `index` as asked; returns the attempt's deadline.
    fn begin(&mut self, index: usize) -> Instant {
        let now = Instant::now();
        if let Some(busy) = self.busy.get_mut(index) {
            *busy = Some(now);
        }
        let place = self.order.iter().position(|&i| i == index).unwrap_or(0);
        self.cursor = place + 1;
        let limit = self.budget.limit.as_duration();
        let n = u32::try_from(self.order.len()).unwrap_or(u32::MAX);
        self.next_start = now + (limit / n).clamp(HEDGE_MIN, HEDGE_MAX);
        let attempt = (limit / ATTEMPTS_PER_BUDGET).max(ATTEMPT_MIN);
        (now + attempt).min(self.budget.deadline)
    }

    /// `index` answered; those that were asked before it and have not are suspect.
    fn won(&self, index: usize) {
        let began = self.busy.get(index).copied().flatten();
        for (other, at) in self.busy.iter().enumerate() {
            if at.is_some() && *at < began {
                self.caller.endpoints.silent(other);
            }
        }
        self.caller.endpoints.answered(index);
    }

    fn lost(&mut self, index: usize, fault: Fault) {
        if let Some(busy) = self.busy.get_mut(index) {
            *busy = None;
        }
        self.perhaps_executed |= matches!(fault, Fault::Unanswered(_));
        if matches!(fault, Fault::Token(_)) {
            // With a new token the same endpoint is as good as any.
            self.cursor = self.order.iter().position(|&i| i == index).unwrap_or(0);
        } else {
            self.caller.endpoints.failed(index);
        }
        self.last = Some(fault);
        self.failures += 1;
        self.next_start = Instant::now();
        if self.failures.is_multiple_of(self.order.len()) {
            self.next_start += self.pause;
            self.pause = (self.pause * 2).min(ROUND_PAUSE_MAX);
        }
    }

    /// The budget is spent.
    fn spent(&self, operation: &'static str, kind: Kind) -> Error {
        let asked = self.busy.iter().any(Option::is_some);
        for (index, busy) in self.busy.iter().enumerate() {
            if busy.is_some() {
                self.caller.endpoints.silent(index);
            }
        }
        let detail = match &self.last {
            Some(fault) => fault.detail().to_owned(),
            None => "no answer in time".to_owned(),
        };
        let endpoints = self.caller.endpoints.names();
        let limit = self.budget.limit;
        match (asked || self.perhaps_executed, kind) {
            (false, Kind::Read | Kind::Repeatable) => {
                Error::NotSent { operation, endpoints, limit, detail }
            }
            (true, Kind::Read) => Error::Unanswered { operation, endpoints, limit, detail },
            (true, Kind::Repeatable) => Error::Ambiguous(Box::new(Ambiguity {
                operation,
                detail,
                txn: None,
                floor: Revision(0),
            })),
        }
    }
}

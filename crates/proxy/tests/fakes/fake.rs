//! A fake PostgreSQL server, a client, and a proxy between them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgproto::wire::{ErrorResponse, Severity, sqlstate_of};
use proxy::{Proxy, ProxyConfig, ProxyError, Status, Views};
use route::Port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use types::{ClusterView, KeyValue, Revision};

/// The row that `big` brings.
const BIG_BYTES: usize = 200_000;
/// Everything here happens within milliseconds; this only ends a test that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) type View = (Option<Arc<ClusterView>>, bool);

/// A proxy that runs.
pub(crate) struct Rig {
    addresses: Vec<(Port, SocketAddr)>,
    http: Option<SocketAddr>,
    pub(crate) views: watch::Sender<View>,
    pub(crate) status: watch::Receiver<Status>,
    /// Of the clusters besides its own.
    pub(crate) other_views: BTreeMap<String, watch::Sender<View>>,
    pub(crate) other_statuses: BTreeMap<String, watch::Receiver<Status>>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) running: JoinHandle<Result<(), ProxyError>>,
}

impl Rig {
    pub(crate) async fn start(
        view: Arc<ClusterView>,
        change: impl FnOnce(&mut ProxyConfig),
    ) -> Rig {
        Rig::start_with(view, &[], change).await
    }

    /// With other clusters, by name.
    pub(crate) async fn start_with(
        view: Arc<ClusterView>,
        others: &[(&str, Arc<ClusterView>)],
        change: impl FnOnce(&mut ProxyConfig),
    ) -> Rig {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut config = ProxyConfig::new("test", vec![any], vec![any]);
        config.clusters = others.iter().map(|(name, _)| (*name).to_owned()).collect();
        change(&mut config);
        Rig::run(Proxy::bind(config).await.unwrap(), view, others)
    }

    /// Runs a proxy that listens.
    pub(crate) fn run(
        proxy: Proxy,
        view: Arc<ClusterView>,
        others: &[(&str, Arc<ClusterView>)],
    ) -> Rig {
        let views = watch::Sender::new((Some(view), true));
        let other = |(name, view): &(&str, Arc<ClusterView>)| {
            ((*name).to_owned(), watch::Sender::new((Some(view.clone()), true)))
        };
        let other_views: BTreeMap<String, watch::Sender<View>> = others.iter().map(other).collect();
        let sources =
            other_views.iter().fold(Views::from(views.subscribe()), |all, (name, its)| {
                all.with(name, its.subscribe())
            });
        let shutdown = CancellationToken::new();
        Rig {
            addresses: proxy.addresses(),
            http: proxy.http_address(),
            status: proxy.status(),
            other_statuses: proxy.other_statuses(),
            running: tokio::spawn(proxy.run(sources, shutdown.clone())),
            views,
            other_views,
            shutdown,
        }
    }

    pub(crate) fn address(&self, port: Port) -> SocketAddr {
        self.addresses.iter().find(|(p, _)| *p == port).unwrap().1
    }

    /// The port for HTTP.
    pub(crate) fn http(&self) -> u16 {
        self.http.unwrap().port()
    }

    pub(crate) async fn until(&self, condition: impl Fn(&Status) -> bool) {
        Rig::until_status(self.status.clone(), condition).await;
    }

    pub(crate) async fn until_other(&self, cluster: &str, condition: impl Fn(&Status) -> bool) {
        Rig::until_status(self.other_statuses[cluster].clone(), condition).await;
    }

    async fn until_status(
        mut status: watch::Receiver<Status>,
        condition: impl Fn(&Status) -> bool,
    ) {
        let met = timeout(PATIENCE, status.wait_for(|status| condition(status)));
        met.await.expect("the status came in time").expect("the proxy runs");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// A view with a leader key in `term`, the term record, and members by role and term.
pub(crate) fn cluster(
    leader: Option<&str>,
    term: i64,
    members: &[(&FakeServer, &str, u64)],
) -> Arc<ClusterView> {
    cluster_of(leader, term, members, &[])
}

/// The same, with proxies by their ids.
pub(crate) fn cluster_of(
    leader: Option<&str>,
    term: i64,
    members: &[(&FakeServer, &str, u64)],
    proxies: &[(&str, SocketAddr)],
) -> Arc<ClusterView> {
    let kv = |key: String, value: String, revision: i64| KeyValue {
        key,
        value: value.into_bytes(),
        create_revision: Revision(revision),
        mod_revision: Revision(revision),
        lease: 1,
    };
    let record = format!(r#"{{"term":{term},"leader":"x","timeline":1}}"#);
    let mut keys = vec![kv("pgherd/term".to_owned(), record, 100 + term)];
    keys.extend(leader.map(|name| kv("leader".to_owned(), name.to_owned(), 100 + term)));
    for (id, address) in proxies {
        let value = format!(r#"{{"address":"{address}"}}"#);
        keys.push(kv(format!("pgherd/proxies/{id}"), value, 1));
    }
    for (server, role, term) in members {
        let value = format!(
            r#"{{"conn_url":"postgres://{}/postgres","role":"{role}","state":"running",
            "replication_state":"streaming","timeline":1,"term":{term}}}"#,
            server.address
        );
        keys.push(kv(format!("members/{}", server.name), value, 1));
    }
    Arc::new(ClusterView::from_keys(Revision(term), &keys))
}

#[derive(Default)]
struct State {
    sessions: watch::Sender<i64>,
    queries: watch::Sender<u64>,
    cancelled: watch::Sender<Vec<Vec<u8>>>,
    /// Connections that ask for that stay open for as long.
    cancels_held: watch::Sender<bool>,
    /// Where its WAL is, and how often it was asked that.
    position: AtomicU32,
    positions: watch::Sender<u64>,
    refusals: AtomicU32,
    silent: AtomicBool,
    read_only: AtomicBool,
    killed: CancellationToken,
    /// What each session asked for, in the order of their arrival.
    databases: Mutex<Vec<String>>,
    /// Passwords by user. Who has one must show it, and it is what a query about him answers.
    passwords: Mutex<BTreeMap<String, String>>,
}

impl State {
    fn silent(&self) -> bool {
        self.silent.load(Ordering::SeqCst)
    }
}

/// Answers the query `x` with `name:x`; `begin`, `commit` and `rollback` as a server does, what
/// has `hang` in it never, `big` with a long row, `half` with half a message, `fatal` with an
/// error and the end, and `until cancelled` with an error once somebody was cancelled. A read-only
/// one refuses what ends with `writes()`. Nobody counts questions about its position.
pub(crate) struct FakeServer {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    listening: JoinHandle<()>,
}

impl FakeServer {
    pub(crate) async fn start(name: &'static str) -> FakeServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = state.clone();
        let listening = tokio::spawn(async move {
            let mut number = 0;
            while let Ok((socket, _)) = listener.accept().await {
                number += 1;
                let state = shared.clone();
                tokio::spawn(async move {
                    state.sessions.send_modify(|count| *count += 1);
                    tokio::select! {
                        _ = serve(socket, name, number, &state) => {}
                        () = state.killed.cancelled() => {}
                    }
                    state.sessions.send_modify(|count| *count -= 1);
                });
            }
        });
        FakeServer { name, address, state, listening }
    }

    pub(crate) fn refuse_sessions(&self, count: u32) {
        self.state.refusals.store(count, Ordering::SeqCst);
    }

    pub(crate) fn be_at(&self, position: u32) {
        self.state.position.store(position, Ordering::SeqCst);
    }

    pub(crate) fn be_read_only(&self) {
        self.state.read_only.store(true, Ordering::SeqCst);
    }

    /// Waits until it was asked so many times more where it is.
    pub(crate) async fn until_asked(&self, more: u64) {
        let mut asked = self.state.positions.subscribe();
        let wanted = *asked.borrow_and_update() + more;
        timeout(PATIENCE, asked.wait_for(|count| *count >= wanted)).await.unwrap().unwrap();
    }

    pub(crate) fn queries(&self) -> u64 {
        *self.state.queries.borrow()
    }

    pub(crate) fn be_silent(&self) {
        self.state.silent.store(true, Ordering::SeqCst);
    }

    /// The databases that its sessions asked for, in their order.
    pub(crate) fn databases(&self) -> Vec<String> {
        self.state.databases.lock().unwrap().clone()
    }

    pub(crate) fn knows(&self, user: &str, password: &str) {
        self.state.passwords.lock().unwrap().insert(user.to_owned(), password.to_owned());
    }

    pub(crate) fn kill(&self) {
        self.listening.abort();
        self.state.killed.cancel();
    }

    pub(crate) fn cancelled(&self) -> Vec<Vec<u8>> {
        self.state.cancelled.borrow().clone()
    }

    /// From now on the connections of cancel requests are closed only when this is undone: a server
    /// signals once more in between.
    pub(crate) fn hold_cancels(&self, hold: bool) {
        self.state.cancels_held.send_replace(hold);
    }

    pub(crate) async fn until_cancelled(&self, count: usize) {
        let mut cancelled = self.state.cancelled.subscribe();
        timeout(PATIENCE, cancelled.wait_for(|keys| keys.len() == count)).await.unwrap().unwrap();
    }

    pub(crate) async fn until_queries(&self, count: u64) {
        let mut queries = self.state.queries.subscribe();
        timeout(PATIENCE, queries.wait_for(|seen| *seen >= count)).await.unwrap().unwrap();
    }

    pub(crate) async fn until_sessions(&self, count: i64) {
        let mut sessions = self.state.sessions.subscribe();
        timeout(PATIENCE, sessions.wait_for(|open| *open == count)).await.unwrap().unwrap();
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn serve(
    mut socket: TcpStream,
    name: &str,
    number: u32,
    state: &State,
) -> std::io::Result<()> {
    let length = usize::try_from(socket.read_u32().await?).unwrap();
    let mut packet = vec![0; length - 4];
    socket.read_exact(&mut packet).await?;
    if packet.starts_with(&80_877_102u32.to_be_bytes()) {
        state.cancelled.send_modify(|keys| keys.push(packet[4..].to_vec()));
        let mut held = state.cancels_held.subscribe();
        drop(held.wait_for(|held| !held).await);
        return Ok(());
    }
    if state.silent() {
        std::future::pending::<()>().await;
    }
    let user = parameter(&packet, "user").unwrap();
    let database = parameter(&packet, "database").unwrap_or_else(|| user.clone());
    state.databases.lock().unwrap().push(database);
    let refused =
        state.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    if refused.is_ok() {
        return socket.write_all(&fatal("57P03")).await;
    }
    let password = state.passwords.lock().unwrap().get(&user).cloned();
    if let Some(password) = password {
        socket.write_all(&message(b'R', &3u32.to_be_bytes())).await?;
        let (_, shown) = read_message(&mut socket).await?;
        if shown[..shown.len() - 1] != *password.as_bytes() {
            return socket.write_all(&fatal("28P01")).await;
        }
    }
    // As a server of protocol 3.2 does: a key of 36 bytes, unlike any other server's.
    let key = [&number.to_be_bytes()[..], &[name.as_bytes()[0]; 32]].concat();
    let version = message(b'S', b"server_version\0made up\0");
    let hello = [message(b'R', &[0; 4]), version, message(b'K', &key), message(b'Z', b"I")];
    socket.write_all(&hello.concat()).await?;
    let mut status = b'I';
    loop {
        let (tag, body) = read_message(&mut socket).await?;
        if tag == b'X' {
            return Ok(());
        }
        if tag != b'Q' {
            // The only ones who come with the extended protocol ask for a password.
            if let Some(answer) = about_user(tag, &body, state) {
                socket.write_all(&answer).await?;
            }
            continue;
        }
        let text = String::from_utf8(body[..body.len() - 1].to_vec()).unwrap();
        if text.starts_with("SELECT") && text.contains("pg_catalog.pg_") {
            let position = format!("0/{:X}", state.position.load(Ordering::SeqCst));
            let length = u32::try_from(position.len()).unwrap().to_be_bytes();
            let row = [&[0, 1], &length[..], position.as_bytes()].concat();
            let said = [message(b'D', &row), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")];
            socket.write_all(&said.concat()).await?;
            state.positions.send_modify(|count| *count += 1);
            continue;
        }
        let answer = message(b'C', format!("{name}:{text}\0").as_bytes());
        match text.as_str() {
            "begin" => status = b'T',
            "commit" | "rollback" => status = b'I',
            _ => {}
        }
        match text.as_str() {
            writes if writes.ends_with("writes()") && state.read_only.load(Ordering::SeqCst) => {
                let said = [message(b'T', &[0; 2]), error(Severity::Error, "25006")];
                socket.write_all(&[&said.concat()[..], &message(b'Z', b"I")].concat()).await?;
            }
            hangs if hangs.contains("hang") || hangs == "commit" && state.silent() => {}
            "until cancelled" | "select 'until cancelled'" => {
                let mut cancelled = state.cancelled.subscribe();
                drop(cancelled.wait_for(|keys| !keys.is_empty()).await);
                let error = error(Severity::Error, "57014");
                socket.write_all(&[error, message(b'Z', &[status])].concat()).await?;
            }
            "half" => socket.write_all(&message(b'D', &[0; 100])[..50]).await?,
            "big" | "select 'big'" => {
                let row = message(b'D', &vec![0; BIG_BYTES]);
                socket.write_all(&[row, answer, message(b'Z', &[status])].concat()).await?;
            }
            "fatal" => return socket.write_all(&fatal("XX000")).await,
            _ => socket.write_all(&[answer, message(b'Z', &[status])].concat()).await?,
        }
        state.queries.send_modify(|count| *count += 1);
    }
}

/// A row of the user that a Bind names and of his password, and the answer to a Sync.
fn about_user(tag: u8, body: &[u8], state: &State) -> Option<Vec<u8>> {
    match tag {
        b'B' => {
            // No names, no formats, one value; no formats of the result.
            let user = std::str::from_utf8(&body[10..body.len() - 2]).unwrap();
            let password = state.passwords.lock().unwrap().get(user)?.clone();
            let values = [user, &password].map(|value| {
                [&u32::try_from(value.len()).unwrap().to_be_bytes()[..], value.as_bytes()].concat()
            });
            Some(message(b'D', &[&2u16.to_be_bytes()[..], &values.concat()].concat()))
        }
        b'S' => Some(message(b'Z', b"I")),
        b'P' | b'E' => None,
        _ => panic!("the client sends queries only, not {}", char::from(tag)),
    }
}

/// A parameter of a startup packet.
fn parameter(packet: &[u8], name: &str) -> Option<String> {
    let texts: Vec<&str> = packet[4..]
        .split(|byte| *byte == 0)
        .map(|text| std::str::from_utf8(text).unwrap())
        .collect();
    let pair = texts.chunks_exact(2).find(|pair| pair[0] == name)?;
    Some(pair[1].to_owned())
}

fn fatal(sqlstate: &str) -> Vec<u8> {
    error(Severity::Fatal, sqlstate)
}

fn error(severity: Severity, sqlstate: &str) -> Vec<u8> {
    ErrorResponse { severity, sqlstate, message: "made up", hint: None }.to_bytes()
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

async fn read_message(socket: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let tag = socket.read_u8().await?;
    let length = usize::try_from(socket.read_u32().await?).unwrap();
    let mut body = vec![0; length - 4];
    socket.read_exact(&mut body).await?;
    Ok((tag, body))
}

/// What a client was told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) sqlstate: String,
    pub(crate) text: String,
}

/// A client that speaks the simple protocol.
pub(crate) struct Client {
    socket: TcpStream,
    pub(crate) key: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Client {
        Client { socket: TcpStream::connect(address).await.unwrap(), key: Vec::new() }
    }

    pub(crate) async fn open(address: SocketAddr) -> Result<Client, Told> {
        let mut client = Client::connect(address).await;
        client.start().await?;
        Ok(client)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn ask_encryption(&mut self, code: u32) -> u8 {
        self.send(&[8u32.to_be_bytes(), code.to_be_bytes()].concat()).await;
        self.socket.read_u8().await.unwrap()
    }

    pub(crate) async fn open_as(
        address: SocketAddr,
        user: &str,
        database: &str,
    ) -> Result<Client, Told> {
        let mut client = Client::connect(address).await;
        client.send_parameters(&format!("user\0{user}\0database\0{database}\0\0")).await;
        client.is_let_in().await.map(|()| client)
    }

    /// Shows this password when it is asked for one.
    pub(crate) async fn open_with_password(
        address: SocketAddr,
        (user, password): (&str, &str),
        database: &str,
    ) -> Result<Client, Told> {
        let mut client = Client::connect(address).await;
        client.send_parameters(&format!("user\0{user}\0database\0{database}\0\0")).await;
        match client.read().await {
            (b'R', asked) => assert_eq!(asked, 3u32.to_be_bytes(), "a password as it is"),
            (_, error) => return Err(told(&error)),
        }
        client.send(&message(b'p', format!("{password}\0").as_bytes())).await;
        client.is_let_in().await.map(|()| client)
    }

    pub(crate) async fn send_startup(&mut self) {
        self.send_parameters("user\0app\0\0").await;
    }

    async fn send_parameters(&mut self, parameters: &str) {
        let body = [&0x0003_0002u32.to_be_bytes()[..], parameters.as_bytes()].concat();
        let length = u32::try_from(body.len() + 4).unwrap();
        self.send(&[&length.to_be_bytes()[..], &body].concat()).await;
    }

    pub(crate) async fn start(&mut self) -> Result<(), Told> {
        self.send_startup().await;
        self.is_let_in().await
    }

    async fn is_let_in(&mut self) -> Result<(), Told> {
        loop {
            match self.read().await {
                (b'K', body) => self.key = body,
                (b'Z', _) => return Ok(()),
                (b'E', body) => return Err(told(&body)),
                (_, _) => {}
            }
        }
    }

    pub(crate) async fn send_query(&mut self, text: &str) {
        self.send(&message(b'Q', format!("{text}\0").as_bytes())).await;
    }

    /// Many at once; nothing is read meanwhile.
    pub(crate) async fn send_queries(&mut self, text: &str, count: usize) {
        self.send(&message(b'Q', format!("{text}\0").as_bytes()).repeat(count)).await;
    }

    pub(crate) async fn query(&mut self, text: &str) -> Result<String, Told> {
        self.send_query(text).await;
        self.read_answer().await
    }

    /// Up to ReadyForQuery, or to the end that an error is.
    pub(crate) async fn read_answer(&mut self) -> Result<String, Told> {
        let mut failed = None;
        let mut answer = String::new();
        loop {
            match self.read().await {
                (b'C', body) => {
                    answer = String::from_utf8(body[..body.len() - 1].to_vec()).unwrap();
                }
                (b'Z', _) => return failed.map_or(Ok(answer), Err),
                (b'E', body) if body.windows(7).any(|field| field == b"VFATAL\0") => {
                    return Err(told(&body));
                }
                (b'E', body) => failed = Some(told(&body)),
                (_, _) => {}
            }
        }
    }

    /// The rows of an answer: text by name of the column.
    pub(crate) async fn rows(&mut self, text: &str) -> Vec<BTreeMap<String, String>> {
        self.send_query(text).await;
        let (mut names, mut rows) = (Vec::new(), Vec::new());
        loop {
            match self.read().await {
                (b'T', body) => names = columns(&body),
                (b'D', body) => rows.push(names.iter().cloned().zip(cells(&body)).collect()),
                (b'E', body) => panic!("{:?}", told(&body)),
                (b'Z', _) => return rows,
                (_, _) => {}
            }
        }
    }

    pub(crate) async fn read_some(&mut self) {
        assert!(self.socket.read(&mut [0; 1]).await.unwrap() > 0);
    }

    pub(crate) async fn read_error(&mut self) -> Told {
        let (tag, body) = self.read().await;
        assert_eq!(tag, b'E');
        told(&body)
    }

    /// The SQLSTATE of the only error before the end, nothing if there is no whole message.
    pub(crate) async fn last_word(&mut self) -> String {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.socket.read_to_end(&mut rest)).await;
        read.expect("the connection is closed").expect("it is not reset");
        if rest.first() != Some(&b'E') {
            return String::new();
        }
        let length = u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]);
        assert_eq!(usize::try_from(length).unwrap() + 1, rest.len(), "one message");
        sqlstate_of(&rest[5..]).unwrap().to_owned()
    }

    pub(crate) async fn goodbye(mut self) {
        self.send(&message(b'X', b"")).await;
    }

    /// Sends a cancel request and waits until it has been taken.
    pub(crate) async fn cancel(address: SocketAddr, key: &[u8]) {
        let mut client = Client::connect(address).await;
        let length = u32::try_from(8 + key.len()).unwrap();
        let code = 80_877_102u32.to_be_bytes();
        client.send(&[&length.to_be_bytes()[..], &code, key].concat()).await;
        assert_eq!(client.last_word().await, "");
    }

    async fn read(&mut self) -> (u8, Vec<u8>) {
        let read = timeout(PATIENCE, read_message(&mut self.socket)).await;
        read.expect("an answer in time").expect("a whole message")
    }
}

fn told(body: &[u8]) -> Told {
    Told {
        sqlstate: sqlstate_of(body).unwrap().to_owned(),
        text: String::from_utf8_lossy(body).into_owned(),
    }
}

/// The names in a RowDescription.
fn columns(body: &[u8]) -> Vec<String> {
    let mut rest = &body[2..];
    let mut names = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == 0).unwrap();
        names.push(String::from_utf8(rest[..end].to_vec()).unwrap());
        rest = &rest[end + 19..];
    }
    names
}

/// The texts in a DataRow without nulls.
fn cells(body: &[u8]) -> Vec<String> {
    let mut rest = &body[2..];
    let mut cells = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (cell, after) = after.split_at(usize::try_from(u32::from_be_bytes(*length)).unwrap());
        cells.push(String::from_utf8(cell.to_vec()).unwrap());
        rest = after;
    }
    cells
}

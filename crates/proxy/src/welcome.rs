//! Signing a client of a pool in.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use config::{AuthMethod, Decision};
use pgproto::wire::{ErrorResponse, Severity, Startup};
use route::link::{ClientSide, PoolMode, Reported, Settings, parameter_status, ready_for_query};
use route::{Event, Port};
use tokio::io::AsyncWriteExt;

use crate::cancel::KnownKey;
use crate::client::Command;
use crate::door::Caller;
use crate::front::{Entered, Front};
use crate::hub::{Pool, PoolKey};
use crate::login::{Channel, Login, Shown, StoredSecret, auth_query, authenticate};
use crate::lowering::Judge;
use crate::pooled::Pooled;
use crate::secure::Stream;
use crate::server::ServerConnection;
use crate::sockets;
use crate::tally::Outcome;
use crate::users::Counted;
use crate::visitors::{Errand, Visitor};
use crate::words;

/// A server answers what is asked of users within this time.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// Why a client does not come in: what it is told, if anything.
type Farewell = Option<Vec<u8>>;

/// A client at the door.
pub(crate) struct Arrived<'a> {
    pub(crate) place: &'a Entered,
    pub(crate) port: Port,
    pub(crate) address: SocketAddr,
    pub(crate) stream: Stream,
    pub(crate) channel: Channel,
    pub(crate) startup: Startup,
    pub(crate) judge: Judge,
    /// What it sent behind its startup packet.
    pub(crate) unread: Vec<u8>,
}

impl Arrived<'_> {
    /// It is shown to operators from now on.
    pub(crate) fn is_in(&self, errand: Errand) {
        let who = self.judge.who().clone();
        let visitor = Visitor::new(errand, who, (&self.stream, self.address), &self.startup);
        self.place.front().visitors.enter(self.place.id, visitor);
    }
}

/// Signs the client in and serves it to its end.
pub(crate) async fn run(mut client: Arrived<'_>) {
    let place = client.place;
    let logins = &place.front().tally.logins;
    // What the login needs is not kept for as long as the client stays.
    let signed_in = match Box::pin(sign_in(&mut client)).await {
        Ok(signed_in) => signed_in,
        Err(TurnedAway { outcome, word }) => {
            logins.add((client.port, outcome));
            let Some(word) = word else { return };
            return Box::pin(place.front().dismiss(client.port, client.stream, &word)).await;
        }
    };
    logins.add((client.port, Outcome::LetIn));
    let SignedIn { pool, settings, told, unread, key, counted } = signed_in;
    client.is_in(Errand::Pool);
    let mode = place.front().destination(&pool.key.database).pool_mode;
    let Arrived { port, stream, judge, .. } = client;
    let config = &place.hub.config;
    let splits = config.read_write_split && port == Port::ReadWrite && mode != PoolMode::Session;
    let side = ClientSide::new(mode, config.session_state, settings, told).splitting(splits);
    let pooled = Pooled::new(place, (pool, port), judge, stream, side, unread);
    if splits { pooled.splitting() } else { pooled }.serve().await;
    drop((key, counted));
}

struct SignedIn {
    pool: Arc<Pool>,
    settings: Arc<Settings>,
    told: Arc<Reported>,
    unread: Vec<u8>,
    key: KnownKey,
    counted: Option<Counted>,
}

/// A client that does not come in.
struct TurnedAway {
    outcome: Outcome,
    word: Farewell,
}

impl TurnedAway {
    fn new(outcome: Outcome, word: Farewell) -> TurnedAway {
        TurnedAway { outcome: if word.is_some() { outcome } else { Outcome::Left }, word }
    }
}

async fn sign_in(client: &mut Arrived<'_>) -> Result<SignedIn, TurnedAway> {
    if client.place.front().is_full() {
        let word = words::too_many_clients(client.place.hub.config.client_limit);
        return Err(TurnedAway::new(Outcome::Refused, Some(word)));
    }
    let user = client.judge.who().user.clone();
    let mut unread = std::mem::take(&mut client.unread);
    let hello = authenticated(client, &user, &mut unread).await;
    let hello = hello.map_err(|word| TurnedAway::new(Outcome::Rejected, word))?;
    let admitted = admit(client, hello, unread).await;
    admitted.map_err(|word| TurnedAway::new(Outcome::Refused, word))
}

/// Gives a client that has shown who it is its place in a pool. Before that there is no pool:
/// anybody can make up names.
async fn admit(
    client: &mut Arrived<'_>,
    mut hello: Vec<u8>,
    unread: Vec<u8>,
) -> Result<SignedIn, Farewell> {
    let place = client.place;
    let hub = &place.hub;
    let who = client.judge.who();
    let destination = place.front().destination(&who.database);
    let dbname = destination.dbname(&who.database);
    let pool = hub.pool(PoolKey::clone(who), dbname, destination.pool_size);
    let counted = counted(place.front(), &pool.key.user)?;
    let settings = pool.share_settings(Arc::new(Settings::of_startup(&client.startup.parameters)));
    let reported = match pool.welcome(client.port) {
        Some(reported) => reported,
        None => {
            let connection = borrow(client, &pool).await?;
            let reported = connection.side.reported().clone();
            hub.give_back(connection);
            reported
        }
    };
    let told = pool.share_reported(reported.with(&settings));
    let key = place.front().cancel_keys.create(place.id).ok_or(None)?;
    for (name, value) in &told.0 {
        parameter_status(&mut hello, name, value);
    }
    hello.extend(key.key().to_message());
    ready_for_query(&mut hello, b'I');
    client.stream.write_all(&hello).await.map_err(|_| None)?;
    client.stream.flush().await.map_err(|_| None)?;
    Ok(SignedIn { pool, settings, told, unread, key, counted })
}

/// Only somebody who has shown who he is takes a place of this user's.
fn counted(front: &Front, user: &str) -> Result<Option<Counted>, Farewell> {
    let limit = front.config.limits.client_limit_per_user;
    if limit == 0 {
        return Ok(None);
    }
    let counted = front.users.enter(user, limit);
    counted.map(Some).ok_or_else(|| Some(words::too_many_of_user(user, limit)))
}

/// Has the client show who it is, as the configuration asks of it. Gives the end of the login,
/// which goes with what follows.
pub(crate) async fn authenticated(
    client: &mut Arrived<'_>,
    user: &str,
    unread: &mut Vec<u8>,
) -> Result<Vec<u8>, Farewell> {
    let hub = client.place.hub.clone();
    let (door, known) = (&hub.door, &hub.known);
    let method = method(client, user).await?;
    let by_password = match method {
        AuthMethod::Password | AuthMethod::Md5 | AuthMethod::Scram => true,
        AuthMethod::Trust | AuthMethod::Cert => false,
    };
    let stored = match known.stored(user) {
        Some(known) => known,
        None if by_password => stored(client, user).await?,
        None => None,
    };
    let login = Login {
        user,
        method,
        stored: stored.as_ref(),
        channel: &client.channel,
        salt_secret: &door.salt_secret,
        limit: hub.config.limits.client_login_timeout.as_duration(),
    };
    match authenticate(&mut client.stream, unread, login).await {
        Ok(Shown { credentials, last }) => {
            known.learned(credentials);
            Ok(last)
        }
        Err(rejected) => {
            if rejected.doubts_stored() {
                known.doubt(user);
            }
            let (id, address) = (client.place.id, client.address);
            tracing::info!(client = %id, %address, user, %rejected, "a login failed");
            Err(rejected.last_word())
        }
    }
}

async fn method(client: &mut Arrived<'_>, user: &str) -> Result<AuthMethod, Farewell> {
    let hub = client.place.hub.clone();
    let who = client.judge.who().clone();
    let (address, tls) = (client.address, client.stream.is_tls());
    let caller = Caller { user, database: &who.database, address, tls };
    let mut decision = hub.door.decide(caller, hub.known.roles(user).as_ref());
    if decision == Decision::NeedsRoles {
        let roles = roles(client, user).await?;
        decision = hub.door.decide(caller, Some(&roles));
    }
    match decision {
        Decision::Let(method) => Ok(method),
        Decision::Rejected { .. } | Decision::NoRule | Decision::NeedsRoles => {
            let database = &who.database;
            let encrypted = if tls { "with TLS" } else { "no TLS" };
            let host = address.ip();
            let why = match decision {
                Decision::Rejected { line } => format!("rule of line {line} rejects"),
                _ => "no rule admits".to_owned(),
            };
            let message = format!(
                "{why} host \"{host}\", user \"{user}\", database \"{database}\", {encrypted}"
            );
            tracing::info!(client = %client.place.id, message, "a client is not let in");
            Err(Some(fatal("28000", &message)))
        }
    }
}

fn fatal(sqlstate: &str, message: &str) -> Vec<u8> {
    ErrorResponse { severity: Severity::Fatal, sqlstate, message, hint: None }.to_bytes()
}

/// What a server stores of the user's password.
async fn stored(client: &mut Arrived<'_>, user: &str) -> Result<Option<StoredSecret>, Farewell> {
    let hub = client.place.hub.clone();
    let Some(query) = &hub.door.security.auth_query else {
        return Ok(None);
    };
    let mut connection = borrow_asker(client, &query.user, &query.database).await?;
    let server = &mut connection.stream;
    let text = &query.query;
    let asked =
        auth_query::stored_secret(server, &mut connection.inbox, text, user, ASK_LIMIT).await;
    match asked {
        Ok(stored) => {
            hub.known.answered(user, stored.clone());
            hub.give_back(connection);
            Ok(stored)
        }
        Err(error) => Err(not_asked(client, connection, &error)),
    }
}

/// The roles that the user is a member of.
async fn roles(client: &mut Arrived<'_>, user: &str) -> Result<BTreeSet<String>, Farewell> {
    let hub = client.place.hub.clone();
    let Some(query) = &hub.door.security.auth_query else {
        return Ok(BTreeSet::new());
    };
    let mut connection = borrow_asker(client, &query.user, &query.database).await?;
    let server = &mut connection.stream;
    match auth_query::roles(server, &mut connection.inbox, user, ASK_LIMIT).await {
        Ok(roles) => {
            hub.known.has_roles(user, roles.clone());
            hub.give_back(connection);
            Ok(roles)
        }
        Err(error) => Err(not_asked(client, connection, &error)),
    }
}

fn not_asked(
    client: &Arrived<'_>,
    connection: Box<ServerConnection>,
    error: &auth_query::AskError,
) -> Farewell {
    let hub = &client.place.hub;
    tracing::warn!(%error, "cannot ask a server about a user");
    if error.session_goes_on() {
        hub.give_back(connection);
    } else {
        hub.step(Event::Lost { server: connection.id });
    }
    Some(fatal("08006", "the proxy cannot ask the server about this user"))
}

async fn borrow_asker(
    client: &mut Arrived<'_>,
    user: &str,
    database: &str,
) -> Result<Box<ServerConnection>, Farewell> {
    // Each cluster is asked in its own database of this name, wherever clients are led by it.
    let size = client.place.front().destination(database).pool_size;
    let key = PoolKey { database: database.to_owned(), user: user.to_owned() };
    let pool = client.place.hub.pool(key, database, size);
    borrow(client, &pool).await
}

/// Waits for a server of a pool.
async fn borrow(
    client: &mut Arrived<'_>,
    pool: &Arc<Pool>,
) -> Result<Box<ServerConnection>, Farewell> {
    let (place, hub) = (client.place, &client.place.hub);
    let mut lent = hub.want(place.id, client.port, pool.id).ok();
    loop {
        if let Some(mut connection) = lent.take() {
            if connection.is_alive() {
                return Ok(connection);
            }
            hub.step(Event::Lost { server: connection.id });
            lent = hub.want(place.id, client.port, pool.id).ok();
            continue;
        }
        let command = tokio::select! {
            command = place.mailbox.next() => command,
            () = sockets::closed_by_peer(client.stream.socket()) => return Err(None),
        };
        match command {
            Command::Have(connection) => lent = Some(connection),
            Command::Again => lent = hub.want(place.id, client.port, pool.id).ok(),
            Command::Refuse(refusal) => return Err(Some(words::refusal(&refusal))),
            Command::End(ending) => return Err(Some(words::ending(ending, false))),
            Command::Lose { .. } | Command::Wait | Command::Connect { .. } => {}
        }
    }
}

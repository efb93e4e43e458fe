//! Logins with real servers and real clients: PostgreSQL 15 and 18, psql of both. TLS is tested
//! with those that were built with it.
//!
//! From the share of real clients: about ten seconds in all.
#![allow(clippy::unwrap_used, missing_docs)]

mod instance;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use config::{AuthMethod, CertificateFiles, ClientTlsMode, ServerTls, ServerTlsMode};
use proxy::login::{
    Channel, Credentials, Login, Password, Secret, Shown, SignInError, SignedIn, StoredSecret,
    Verdict, auth_query, authenticate, sign_in,
};
use proxy::secure::{ClientSide, DialError, DialLimits, NotWelcome, ServerSide, Stream, Wish};
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use instance::{Postgres, bin_dirs};

const LIMIT: Duration = Duration::from_secs(30);
const QUERY: &str = "SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1 \
                     AND (valuntil IS NULL OR valuntil > now())";
/// As a client may write it; SASLprep makes it what the server stores.
const PASSWORD: &str = "h\u{fc}sh it";

fn password(text: &str) -> Secret {
    Secret::Password(Password::new(text.as_bytes()))
}

fn server_side(mode: ServerTlsMode, ca: Option<PathBuf>) -> ServerSide {
    ServerSide::new(&ServerTls { mode, ca, ..ServerTls::default() }).unwrap()
}

async fn dial(postgres: &Postgres, side: &ServerSide) -> Result<(Stream, Channel), DialError> {
    let limits = DialLimits { connect: LIMIT, handshake: LIMIT, user_timeout: None };
    side.dial("localhost", postgres.port, b"", limits).await
}

/// Signs in with TLS as the mode says; the channel is shown to `change` before.
async fn login(
    postgres: &Postgres,
    mode: ServerTlsMode,
    user: &str,
    secret: Secret,
    change: impl FnOnce(&mut Channel),
) -> Result<(Stream, SignedIn), SignInError> {
    let (mut stream, mut channel) = dial(postgres, &server_side(mode, None)).await.unwrap();
    assert_eq!(stream.is_tls(), mode != ServerTlsMode::Disable);
    change(&mut channel);
    let credentials = Credentials { user: user.to_owned(), secret };
    let parameters = [("database", "postgres"), ("application_name", "test")];
    let signed_in = sign_in(&mut stream, &parameters, &credentials, &channel, LIMIT).await?;
    Ok((stream, signed_in))
}

async fn plain(postgres: &Postgres, user: &str, secret: Secret) -> Result<SignedIn, SignInError> {
    let done = login(postgres, ServerTlsMode::Disable, user, secret, |_| {}).await;
    done.map(|(_, signed_in)| signed_in)
}

/// The most that the server has.
fn best(postgres: &Postgres) -> ServerTlsMode {
    if postgres.tls { ServerTlsMode::Require } else { ServerTlsMode::Disable }
}

/// What a server stores of a user's password.
async fn stored(postgres: &Postgres, user: &str) -> Option<StoredSecret> {
    let asker = password("ask");
    let (mut stream, signed_in) =
        login(postgres, best(postgres), "asker", asker, |_| {}).await.unwrap();
    let mut unread = signed_in.unread;
    // A query that is wrong leaves the session as it was.
    let wrong = auth_query::stored_secret(&mut stream, &mut unread, "SELECT $1", "ann", LIMIT);
    assert!(wrong.await.unwrap_err().session_goes_on());
    auth_query::stored_secret(&mut stream, &mut unread, QUERY, user, LIMIT).await.unwrap()
}

#[tokio::test]
async fn servers_let_the_proxy_in() {
    for bin in bin_dirs() {
        let postgres = Postgres::start(&bin);
        passwords_hashes_and_no_others(&postgres).await;
        if postgres.tls {
            tls_and_what_it_is_bound_to(&postgres).await;
        }
        what_the_server_says_of_users(&postgres).await;
    }
}

async fn passwords_hashes_and_no_others(postgres: &Postgres) {
    let signed_in = plain(postgres, "ann", password(PASSWORD)).await.unwrap();
    assert_eq!(signed_in.parameters["application_name"], "test");
    let version: u32 = signed_in.parameters["server_version"][..2].parse().unwrap();
    let key_bytes = if version >= 18 { 32 } else { 4 };
    assert_eq!(signed_in.key.unwrap().secret.len(), key_bytes, "{version}");

    plain(postgres, "old", password("hush")).await.unwrap();
    let hash = stored(postgres, "old").await.unwrap().as_secret();
    assert!(matches!(hash, Secret::Md5Hash(_)));
    plain(postgres, "old", hash.clone()).await.unwrap();
    plain(postgres, "clear", password("hush")).await.unwrap();
    plain(postgres, "postgres", Secret::None).await.unwrap();

    for (user, secret) in [
        ("ann", "hush"),
        ("nobody", "hush"),
        ("old", "wrong"),
        ("clear", "wrong"),
        ("late", "hush"),
    ] {
        let error = plain(postgres, user, password(secret)).await.unwrap_err();
        assert_eq!(error.verdict(), Verdict::Credentials, "{user}: {error}");
    }
    let error = plain(postgres, "ann", hash).await.unwrap_err();
    assert!(matches!(error, SignInError::Unusable { .. }), "{error}");
    let over_network = |channel: &mut Channel| channel.confidential = false;
    let error =
        login(postgres, ServerTlsMode::Disable, "clear", password("hush"), over_network).await;
    assert!(matches!(error, Err(SignInError::ClearText { .. })));

    let (mut stream, channel) =
        dial(postgres, &server_side(ServerTlsMode::Disable, None)).await.unwrap();
    let credentials = Credentials { user: "postgres".to_owned(), secret: Secret::None };
    let nowhere = [("database", "nowhere")];
    let error = sign_in(&mut stream, &nowhere, &credentials, &channel, LIMIT).await.unwrap_err();
    assert!(error.verdict() == Verdict::Final && error.to_string().contains("3D000"), "{error}");
}

async fn tls_and_what_it_is_bound_to(postgres: &Postgres) {
    use ServerTlsMode::{Disable, Prefer, Require, VerifyCa, VerifyFull};
    let secure = || password("hush");
    let error = plain(postgres, "secure", secure()).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Credentials, "no rule without TLS: {error}");
    for mode in [Prefer, Require] {
        login(postgres, mode, "secure", secure(), |_| {}).await.unwrap();
    }
    // That the server's certificate is bound to shows when another one is.
    let another = |channel: &mut Channel| {
        let hash = channel.end_point.as_mut().unwrap();
        assert_eq!(hash.len(), 32);
        hash[0] ^= 1;
    };
    let error = login(postgres, Require, "secure", secure(), another).await.unwrap_err();
    assert!(error.to_string().contains("channel binding check failed"), "{error}");
    let without = |channel: &mut Channel| channel.end_point = None;
    login(postgres, Require, "secure", secure(), without).await.unwrap();

    let (own, other) = (postgres.path("server.crt"), postgres.path("other.crt"));
    for mode in [Require, VerifyCa, VerifyFull] {
        let side = server_side(mode, Some(own.clone()));
        assert!(dial(postgres, &side).await.unwrap().0.is_tls(), "{mode:?}");
        let side = server_side(mode, Some(other.clone()));
        assert!(matches!(dial(postgres, &side).await, Err(DialError::Handshake(_))), "{mode:?}");
    }
    let side = server_side(Disable, None);
    assert!(!dial(postgres, &side).await.unwrap().0.is_tls());
}

async fn what_the_server_says_of_users(postgres: &Postgres) {
    assert!(matches!(stored(postgres, "ann").await, Some(StoredSecret::Verifier(_))));
    assert_eq!(stored(postgres, "nobody").await, None);
    assert_eq!(stored(postgres, "late").await, None, "its password is no longer valid");
    assert_eq!(stored(postgres, &"x".repeat(64)).await, None);
    let (mut stream, signed_in) =
        login(postgres, ServerTlsMode::Disable, "postgres", Secret::None, |_| {}).await.unwrap();
    let mut unread = signed_in.unread;
    let mut roles = async |user| {
        let roles = auth_query::roles(&mut stream, &mut unread, user, LIMIT).await.unwrap();
        roles.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(roles("ann").await, "ann herd traders");
    assert_eq!(roles("postgres").await, "postgres", "a superuser is no member of all");
    assert_eq!(roles("nobody").await, "");
}

/// Servers without TLS, as `sslmode` has it.
#[tokio::test]
async fn a_server_without_tls_is_taken_only_where_that_may_be() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers = tokio::spawn(async move {
        // No TLS; no TLS; a server that knows no TLS, and again without; the same; a broken one.
        for answer in [&b"N"[..], b"N", b"E", b"", b"E", b"Sgarbage", b"", b"Sgarbage"] {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(answer).await.unwrap();
            let mut asked = Vec::new();
            let mut reader = tokio::io::AsyncReadExt::take(&mut socket, 8);
            // The other side closes, or what it sent is not read: both end the connection.
            tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut asked).await.unwrap_or_default();
        }
    });
    let limits = DialLimits { connect: LIMIT, handshake: LIMIT, user_timeout: None };
    let dial = async |mode| {
        let side = server_side(mode, None);
        side.dial("127.0.0.1", port, b"", limits).await.map(|(stream, _)| stream.is_tls())
    };
    use ServerTlsMode::{Prefer, Require};
    assert!(matches!(dial(Prefer).await, Ok(false)));
    assert!(matches!(dial(Require).await, Err(DialError::NoTls)));
    assert!(matches!(dial(Prefer).await, Ok(false)));
    assert!(matches!(dial(Require).await, Err(DialError::Answer(b'E'))));
    assert!(matches!(dial(Prefer).await, Ok(false)));
    assert!(matches!(dial(Require).await, Err(DialError::Handshake(_))));
    answers.await.unwrap();
}

/// A proxy in small: each client authenticates here, and what was learnt signs in at the server.
struct SmallProxy {
    port: u16,
    accepting: tokio::task::JoinHandle<()>,
    side: Arc<ClientSide>,
}

struct Desk {
    side: Arc<ClientSide>,
    server: ServerSide,
    server_port: u16,
    method: AuthMethod,
    stored: Option<StoredSecret>,
    /// What signs in at the server where the client shows nothing that does.
    instead: Option<Secret>,
}

impl SmallProxy {
    async fn start(
        postgres: &Postgres,
        mode: ClientTlsMode,
        method: AuthMethod,
        stored: Option<StoredSecret>,
        instead: Option<Secret>,
    ) -> SmallProxy {
        let certificate = Some(CertificateFiles {
            certfile: postgres.path("proxy.crt"),
            keyfile: Some(postgres.path("proxy.key")),
            keyfile_password: None,
        });
        let ca = (method == AuthMethod::Cert).then(|| postgres.path("ann.crt"));
        let side = ClientSide::new(&config::ClientTls { mode, certificate, ca }, false).unwrap();
        let side = Arc::new(side);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = server_side(best(postgres), None);
        let (side_of_desk, server_port) = (Arc::clone(&side), postgres.port);
        let desk =
            Arc::new(Desk { side: side_of_desk, server, server_port, method, stored, instead });
        let accepting = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let desk = Arc::clone(&desk);
                tokio::spawn(async move { desk.serve(socket).await });
            }
        });
        SmallProxy { port, accepting, side }
    }
}

impl Drop for SmallProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Desk {
    async fn serve(&self, socket: TcpStream) {
        let peer = socket.peer_addr().unwrap();
        let mut welcomed = match self.side.welcome(socket, peer, LIMIT).await {
            Ok(welcomed) => welcomed,
            Err((error, stream)) => {
                let Some(mut stream) = stream else { return };
                let (message, sqlstate) = (error.to_string(), error.sqlstate().unwrap());
                let severity = pgproto::wire::Severity::Fatal;
                let word = pgproto::wire::ErrorResponse {
                    severity,
                    sqlstate,
                    message: &message,
                    hint: None,
                };
                return stream.write_all(&word.to_bytes()).await.unwrap_or_default();
            }
        };
        let Wish::Session(startup, _) = welcomed.wish else { return };
        let (user, mut unread) = (startup.parameter("user").unwrap(), Vec::new());
        let login = Login {
            user,
            method: self.method,
            stored: self.stored.as_ref().filter(|_| user != "nobody"),
            channel: &welcomed.channel,
            salt_secret: b"of the test",
            limit: LIMIT,
        };
        let shown = authenticate(&mut welcomed.stream, &mut unread, login).await;
        let mut credentials = match shown {
            Ok(Shown { credentials, last }) => {
                welcomed.stream.write_all(&last).await.unwrap();
                credentials
            }
            Err(rejected) => {
                let word = rejected.last_word().unwrap_or_default();
                // psql has gone if it has no password yet.
                return welcomed.stream.write_all(&word).await.unwrap_or_default();
            }
        };
        if let Some(instead) = &self.instead {
            credentials.secret = instead.clone();
        }
        let limits = DialLimits { connect: LIMIT, handshake: LIMIT, user_timeout: None };
        let (mut server, channel) =
            self.server.dial("localhost", self.server_port, b"", limits).await.unwrap();
        let parameters = [("database", "postgres")];
        let signed_in = sign_in(&mut server, &parameters, &credentials, &channel, LIMIT).await;
        let signed_in = signed_in.unwrap();
        welcomed.stream.write_all(b"Z\0\0\0\x05I").await.unwrap();
        server.write_all(&unread).await.unwrap();
        welcomed.stream.write_all(&signed_in.unread).await.unwrap();
        // Either side may end first.
        copy_bidirectional(&mut welcomed.stream, &mut server).await.map(drop).unwrap_or_default();
    }
}

/// What psql says of whom it is, by this connection string.
async fn who(bin: &Path, port: u16, password: &str, conninfo: &str) -> (bool, String) {
    let mut psql = Command::new(bin.join("psql"));
    psql.args(["-XAtq", "-c", "select current_user", "-d"]);
    psql.arg(format!("host=localhost hostaddr=127.0.0.1 port={port} dbname=x {conninfo}"));
    psql.env("PGPASSWORD", password).env("PGCLIENTENCODING", "UTF8").env_remove("PGUSER");
    let Output { status, stdout, stderr } =
        psql.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    (status.success(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[tokio::test]
async fn clients_authenticate_and_the_proxy_goes_on_with_what_it_learnt() {
    for bin in bin_dirs() {
        let postgres = Postgres::start(&bin);
        postgres.certify("proxy", "/CN=localhost", "DNS:localhost");
        by_verifier(&postgres).await;
        by_hash(&postgres).await;
        if postgres.tls {
            certificates_read_again(&postgres).await;
            by_certificate(&postgres).await;
            only_over_tls(&postgres).await;
        }
    }
}

async fn by_verifier(postgres: &Postgres) {
    let verifier = stored(postgres, "ann").await;
    let proxy =
        SmallProxy::start(postgres, ClientTlsMode::Allow, AuthMethod::Scram, verifier, None).await;
    let ann = (true, "ann\n".to_owned());
    let who = async |password: &str, conninfo: &str| {
        who(&postgres.bin, proxy.port, password, conninfo).await
    };
    // One without TLS passes the words about it over.
    let modes: &[&str] = match postgres.tls {
        true => &[
            "sslmode=disable",
            "sslmode=require channel_binding=disable",
            "sslmode=require channel_binding=require",
            "sslmode=prefer",
        ],
        false => &["sslmode=disable", "sslmode=prefer"],
    };
    for mode in modes {
        assert_eq!(who(PASSWORD, &format!("user=ann {mode}")).await, ann, "{mode}");
        for (user, password) in [("ann", "wrong"), ("nobody", PASSWORD)] {
            let (served, text) = who(password, &format!("user={user} {mode}")).await;
            let says = format!("FATAL:  password authentication failed for user \"{user}\"");
            assert!(!served && text.contains(&says), "{text}");
        }
    }
}

/// At the caller's word, and what is wrong changes nothing.
async fn certificates_read_again(postgres: &Postgres) {
    let verifier = stored(postgres, "ann").await;
    let proxy =
        SmallProxy::start(postgres, ClientTlsMode::Allow, AuthMethod::Scram, verifier, None).await;
    let ann = (true, "ann\n".to_owned());
    let who = async |password: &str, conninfo: &str| {
        who(&postgres.bin, proxy.port, password, conninfo).await
    };
    let verified = |certificate: &str| {
        let root = postgres.path(certificate);
        format!("user=ann sslmode=verify-full sslrootcert={}", root.display())
    };
    std::fs::copy(postgres.path("proxy.crt"), postgres.path("before.crt")).unwrap();
    assert_eq!(who(PASSWORD, &verified("before.crt")).await, ann);
    postgres.certify("proxy", "/CN=localhost", "DNS:localhost");
    let conninfo = verified("before.crt");
    assert_eq!(who(PASSWORD, &conninfo).await, ann, "not yet");
    proxy.side.reload().unwrap();
    let (served, text) = who(PASSWORD, &conninfo).await;
    assert!(!served && text.contains("certificate verify failed"), "{text}");
    let conninfo = verified("proxy.crt");
    assert_eq!(who(PASSWORD, &format!("{conninfo} channel_binding=require")).await, ann);
    let good = std::fs::read(postgres.path("proxy.key")).unwrap();
    std::fs::write(postgres.path("proxy.key"), "no key").unwrap();
    assert!(proxy.side.reload().unwrap_err().to_string().contains("proxy.key"));
    assert_eq!(who(PASSWORD, &conninfo).await, ann);
    std::fs::write(postgres.path("proxy.key"), good).unwrap();
}

async fn by_hash(postgres: &Postgres) {
    let hash = stored(postgres, "old").await;
    let proxy =
        SmallProxy::start(postgres, ClientTlsMode::Allow, AuthMethod::Md5, hash, None).await;
    let who = async |password| who(&postgres.bin, proxy.port, password, "user=old").await;
    assert_eq!(who("hush").await, (true, "old\n".to_owned()));
    let (served, text) = who("wrong").await;
    assert!(!served && text.contains("password authentication failed"), "{text}");
}

async fn by_certificate(postgres: &Postgres) {
    let instead = Some(password(PASSWORD));
    let (mode, method) = (ClientTlsMode::Require, AuthMethod::Cert);
    let proxy = SmallProxy::start(postgres, mode, method, None, instead).await;
    let who = async |user: &str, shown: &str| {
        let (certificate, key) =
            (postgres.path(&format!("{shown}.crt")), postgres.path(&format!("{shown}.key")));
        let files = format!("sslcert={} sslkey={}", certificate.display(), key.display());
        let conninfo = format!("user={user} sslmode=require {files}");
        who(&postgres.bin, proxy.port, "", &conninfo).await
    };
    assert_eq!(who("ann", "ann").await, (true, "ann\n".to_owned()));
    for (user, shown) in [("old", "ann"), ("whoever", "ann"), ("ann", "none")] {
        let (served, text) = who(user, shown).await;
        let says = format!("certificate authentication failed for user \"{user}\"");
        assert!(!served && text.contains(&says), "{text}");
    }
    // One that nobody stands behind does not come as far.
    let (served, text) = who("ann", "other").await;
    assert!(!served && !text.contains("certificate authentication failed"), "{text}");
}

async fn only_over_tls(postgres: &Postgres) {
    let verifier = stored(postgres, "secure").await;
    let (mode, method) = (ClientTlsMode::Require, AuthMethod::Password);
    let proxy = SmallProxy::start(postgres, mode, method, verifier, None).await;
    let who = async |conninfo| who(&postgres.bin, proxy.port, "hush", conninfo).await;
    assert_eq!(who("user=secure sslmode=require").await, (true, "secure\n".to_owned()));
    let (served, text) = who("user=secure sslmode=disable").await;
    assert!(!served && text.contains("over TLS only"), "{text}");
}

#[tokio::test]
async fn clients_of_postgresql_17_begin_with_tls_and_name_the_protocol() {
    let postgres = tempfile::tempdir().unwrap();
    instance::certify(postgres.path(), "proxy", "/CN=localhost", "DNS:localhost");
    let certfile = postgres.path().join("proxy.crt");
    let keyfile = Some(postgres.path().join("proxy.key"));
    let files = CertificateFiles { certfile: certfile.clone(), keyfile, keyfile_password: None };
    let tls = |mode| config::ClientTls { mode, certificate: Some(files.clone()), ca: None };
    let settings = tls::ClientSettings { authorities: Some(certfile), ..Default::default() };
    let startup = pgproto::wire::startup_packet(0, &[("user", "ann")]).unwrap();
    let welcome = async |mode, protocol: Option<&str>| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let call = async {
            let socket = TcpStream::connect(address).await.unwrap();
            let connector = settings.connector(protocol).unwrap();
            let mut stream = connector.connect("localhost", socket).await?;
            stream.write_all(&startup).await?;
            stream.flush().await?;
            std::io::Result::Ok(stream.server_end_point())
        };
        let side = ClientSide::new(&tls(mode), false).unwrap();
        let serve = async {
            let (socket, peer) = listener.accept().await.unwrap();
            // The connection of who is refused is closed.
            side.welcome(socket, peer, LIMIT).await.map_err(|(error, _)| error)
        };
        tokio::join!(call, serve)
    };
    for mode in [ClientTlsMode::Allow, ClientTlsMode::Require] {
        let (called, welcomed) = welcome(mode, Some("postgresql")).await;
        let welcomed = welcomed.unwrap();
        assert!(welcomed.stream.is_tls() && welcomed.channel.confidential);
        assert_eq!(welcomed.channel.end_point, called.unwrap());
        let Wish::Session(session, _) = welcomed.wish else { panic!("no session") };
        assert_eq!(session.parameter("user"), Some("ann"));
        let (_, refused) = welcome(mode, None).await;
        assert!(matches!(refused, Err(NotWelcome::Protocol)), "{refused:?}");
        let (_, refused) = welcome(mode, Some("http/1.1")).await;
        assert!(matches!(refused, Err(NotWelcome::Handshake(_))), "{refused:?}");
    }
    let (called, refused) = welcome(ClientTlsMode::Disable, Some("postgresql")).await;
    assert!(called.is_err());
    assert!(matches!(refused, Err(NotWelcome::Packet(_))), "{refused:?}");
}

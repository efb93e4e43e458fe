//! Both logins with each other, over a pipe in memory.

use std::time::Duration;

use config::AuthMethod;
use pgproto::md5::Md5Hash;
use pgproto::scram::Verifier;
use pgproto::wire::{STARTUP_BYTES_MAX, field_of, parse_first_packet, sqlstate_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);
/// What follows AuthenticationOk: a parameter, a cancel key, and that the session is ready.
const READY: &[u8] = b"S\0\0\0\x14server\0fake 1.0\0K\0\0\0\x0c\0\0\0\x07keysZ\0\0\0\x05Irest";

/// What the client gets, and what the proxy makes of it.
type Outcome = (Result<SignedIn, SignInError>, Result<Credentials, Rejected>);

struct Talk {
    method: AuthMethod,
    stored: Option<StoredSecret>,
    secret: Secret,
    /// The connection as the client's side and as the server's side know it.
    channels: (Channel, Channel),
}

fn password(text: &str) -> Password {
    Password::new(text.as_bytes())
}

fn confidential() -> Channel {
    Channel { confidential: true, ..Channel::default() }
}

fn bound(byte: u8) -> Channel {
    Channel { end_point: Some(vec![byte; 32]), ..confidential() }
}

fn verifier() -> StoredSecret {
    StoredSecret::Verifier(Verifier::of_password(b"hush", [9; 16]))
}

fn talk(method: AuthMethod, stored: Option<StoredSecret>, secret: Secret) -> Talk {
    Talk { method, stored, secret, channels: (confidential(), confidential()) }
}

/// Plays the server: its startup packet is read, then the proxy's side does the rest.
async fn serve(stream: &mut DuplexStream, talk: &Talk) -> Result<Credentials, Rejected> {
    let mut unread = Vec::with_capacity(STARTUP_BYTES_MAX);
    while parse_first_packet(&unread).unwrap().is_none() {
        assert_ne!(stream.read_buf(&mut unread).await.unwrap(), 0);
    }
    let (_, used) = parse_first_packet(&unread).unwrap().unwrap();
    unread.drain(..used);
    let login = Login {
        user: "ann",
        method: talk.method,
        stored: talk.stored.as_ref(),
        channel: &talk.channels.1,
        salt_secret: b"of the test",
        limit: LIMIT,
    };
    let authenticated = authenticate(stream, &mut unread, login).await;
    match &authenticated {
        Ok(shown) => stream.write_all(&[&shown.last, READY].concat()).await.unwrap(),
        // A client that saw through us has gone.
        Err(rejected) => {
            let word = rejected.last_word().unwrap_or_default();
            stream.write_all(&word).await.unwrap_or_default();
        }
    }
    authenticated.map(|shown| shown.credentials)
}

impl Talk {
    async fn run(&self) -> Outcome {
        let (mut near, mut far) = tokio::io::duplex(4096);
        let credentials = Credentials { user: "ann".to_owned(), secret: self.secret.clone() };
        let channel = &self.channels.0;
        let call = async {
            let called = sign_in(&mut near, &[("database", "d")], &credentials, channel, LIMIT);
            let called = called.await;
            drop(near);
            called
        };
        tokio::join!(call, serve(&mut far, self))
    }

    /// What the proxy may sign in with.
    async fn learns(&self) -> Secret {
        match self.run().await {
            (Ok(signed_in), Ok(credentials)) => {
                assert_eq!(signed_in.parameters["server"], "fake 1.0");
                assert_eq!(signed_in.key.unwrap().secret, b"keys");
                assert_eq!(signed_in.unread, b"rest");
                assert_eq!(credentials.user, "ann");
                credentials.secret
            }
            (signed_in, credentials) => panic!("{signed_in:?} {credentials:?}"),
        }
    }

    /// The SQLSTATE and the text that the client is told.
    async fn refused(&self) -> (String, String) {
        match self.run().await {
            (Err(SignInError::Refused { refusal, .. }), Err(_)) => {
                assert_eq!(sqlstate_of(&refusal.body), Some(refusal.sqlstate.as_str()));
                assert_eq!(field_of(&refusal.body, b'S'), Some(&b"FATAL"[..]));
                (refusal.sqlstate, refusal.message)
            }
            (signed_in, credentials) => panic!("{signed_in:?} {credentials:?}"),
        }
    }
}

#[tokio::test]
async fn each_method_lets_the_right_secret_in_and_learns_what_signs_in() {
    use AuthMethod::{Cert, Md5, Password as Clear, Scram, Trust};
    let hush = || Secret::Password(password("hush"));
    let md5 = || StoredSecret::Md5Hash(Md5Hash::of("ann", b"hush"));
    let hash = || Secret::Md5Hash(Md5Hash::of("ann", b"hush"));
    let clear = || StoredSecret::Password(password("hush"));

    let keys = talk(Scram, Some(verifier()), hush()).learns().await;
    assert!(matches!(keys, Secret::ScramKeys(_)));
    assert_eq!(talk(Scram, Some(verifier()), keys.clone()).learns().await, keys);
    assert_eq!(talk(Md5, Some(verifier()), hush()).learns().await, keys, "SCRAM in MD5's place");
    assert_eq!(talk(Scram, Some(clear()), hush()).learns().await, hush());
    assert_eq!(talk(Md5, Some(clear()), hash()).learns().await, hush());
    assert_eq!(talk(Md5, Some(md5()), hush()).learns().await, hash());
    assert_eq!(talk(Md5, Some(md5()), hash()).learns().await, hash());
    for stored in [clear(), md5(), verifier()] {
        assert_eq!(talk(Clear, Some(stored), hush()).learns().await, hush());
    }
    for (stored, learnt) in [
        (None, Secret::None),
        (Some(clear()), hush()),
        (Some(md5()), hash()),
        (Some(verifier()), Secret::None),
    ] {
        let trusted = talk(Trust, stored.clone(), Secret::None).learns().await;
        assert_eq!(trusted, learnt);
        let mut certified = talk(Cert, stored, Secret::None);
        certified.channels.1.certified = vec!["bob".to_owned(), "ann".to_owned()];
        assert_eq!(certified.learns().await, learnt);
    }
}

#[tokio::test]
async fn who_is_wrong_is_told_what_postgresql_tells() {
    use AuthMethod::{Cert, Md5, Password as Clear, Scram};
    let wrong = || Secret::Password(password("wrong"));
    let md5 = || StoredSecret::Md5Hash(Md5Hash::of("ann", b"hush"));
    let told = |code: &str, text: &str| (code.to_owned(), text.to_owned());
    let failed = told("28P01", "password authentication failed for user \"ann\"");
    for (method, stored) in [
        (Scram, Some(verifier())),
        (Scram, Some(StoredSecret::Password(password("hush")))),
        (Scram, Some(md5())),
        (Scram, None),
        (Md5, Some(md5())),
        (Md5, None),
        (Clear, Some(verifier())),
        (Clear, Some(md5())),
        (Clear, None),
    ] {
        assert_eq!(talk(method, stored.clone(), wrong()).refused().await, failed, "{method:?}");
        let (signed_in, rejected) = talk(method, stored, wrong()).run().await;
        assert_eq!(signed_in.unwrap_err().verdict(), Verdict::Credentials);
        assert!(rejected.unwrap_err().doubts_stored());
    }
    let empty = StoredSecret::Password(password(""));
    let empty = talk(Clear, Some(empty), Secret::Password(password("")));
    assert_eq!(empty.refused().await, failed, "nobody is let in by an empty password");
    let text = "certificate authentication failed for user \"ann\"";
    let mut other = talk(Cert, None, Secret::None);
    assert_eq!(other.refused().await, told("28000", text));
    other.channels.1.certified = vec!["Ann".to_owned()];
    assert_eq!(other.refused().await, told("28000", text));
}

#[tokio::test]
async fn channels_are_bound_to_where_they_can_be() {
    let hush = || Secret::Password(password("hush"));
    let over = |client, server| Talk {
        channels: (client, server),
        ..talk(AuthMethod::Scram, Some(verifier()), hush())
    };
    assert!(matches!(over(bound(7), bound(7)).learns().await, Secret::ScramKeys(_)));
    assert!(matches!(over(confidential(), bound(7)).learns().await, Secret::ScramKeys(_)));
    assert!(matches!(over(bound(7), confidential()).learns().await, Secret::ScramKeys(_)));
    let (code, text) = over(bound(7), bound(8)).refused().await;
    assert!(code == "28000" && text.contains("channel binding"), "{code} {text}");
}

#[tokio::test]
async fn nothing_goes_out_that_should_not() {
    let clear = |client, server| Talk {
        channels: (client, server),
        ..talk(AuthMethod::Password, Some(verifier()), Secret::Password(password("hush")))
    };
    let (signed_in, _) = clear(Channel::default(), confidential()).run().await;
    assert!(matches!(signed_in, Err(SignInError::ClearText { .. })), "{signed_in:?}");
    let (code, text) = clear(confidential(), Channel::default()).refused().await;
    assert!(code == "28000" && text.contains("over TLS only"), "{code} {text}");
    for (method, stored, secret) in [
        (AuthMethod::Password, verifier(), Secret::Md5Hash(Md5Hash::of("ann", b"hush"))),
        (AuthMethod::Scram, verifier(), Secret::Md5Hash(Md5Hash::of("ann", b"hush"))),
        (AuthMethod::Scram, verifier(), Secret::None),
        (AuthMethod::Md5, StoredSecret::Md5Hash(Md5Hash::of("ann", b"hush")), Secret::None),
    ] {
        let (signed_in, rejected) = talk(method, Some(stored), secret).run().await;
        assert!(matches!(signed_in, Err(SignInError::Unusable { .. })), "{signed_in:?}");
        // The client has closed, so there is nobody to tell.
        assert_eq!(rejected.unwrap_err().last_word(), None);
    }
}

/// What `sign_in` makes of a server that says this, whatever it is told.
async fn told(said: &[u8]) -> SignInError {
    let (mut near, mut far) = tokio::io::duplex(64 * 1024);
    far.write_all(said).await.unwrap();
    let secret = Secret::Password(password("hush"));
    let credentials = Credentials { user: "ann".to_owned(), secret };
    let limit = Duration::from_secs(20);
    sign_in(&mut near, &[], &credentials, &confidential(), limit).await.unwrap_err()
}

#[tokio::test]
async fn a_server_does_not_lead_a_login_astray() {
    let ok = &b"R\0\0\0\x08\0\0\0\0"[..];
    let sasl = &b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"[..];
    for said in [
        // Done without a proof of the server's, ready without being let in, and the like.
        [sasl, ok].concat(),
        b"Z\0\0\0\x05I".to_vec(),
        [ok, ok].concat(),
        [ok, b"D\0\0\0\x04"].concat(),
        b"R\0\0\0\x08\0\0\0\x0b".to_vec(),
    ] {
        let error = told(&said).await;
        assert!(matches!(error, SignInError::Unexpected { .. }), "{error:?}");
        assert_eq!(error.verdict(), Verdict::Final);
    }
    let long = told(b"S\x7f\0\0\0").await;
    assert!(matches!(long, SignInError::Message { .. }) && long.verdict() == Verdict::Final);
    let other = told(b"R\0\0\0\x08\0\0\0\x07").await;
    assert!(matches!(other, SignInError::Unusable { .. }), "{other:?}");
    for (sqlstate, verdict) in [
        ("57P03", Verdict::TryAgain),
        ("53300", Verdict::TryAgain),
        ("28P01", Verdict::Credentials),
        ("28000", Verdict::Credentials),
        ("3D000", Verdict::Final),
    ] {
        let body = format!("SFATAL\0C{sqlstate}\0Mno\0\0");
        let length = u8::try_from(body.len() + 4).unwrap();
        let error = told(&[&[b'E', 0, 0, 0, length], body.as_bytes()].concat()).await;
        assert_eq!(error.verdict(), verdict, "{error}");
        assert!(error.to_string().contains(sqlstate), "{error}");
    }
}

/// What a client is told that says this.
async fn answered(method: AuthMethod, said: &[u8]) -> Rejected {
    let (mut near, mut far) = tokio::io::duplex(64 * 1024);
    near.write_all(said).await.unwrap();
    let (stored, channel) = (verifier(), confidential());
    let (stored, channel) = (Some(&stored), &channel);
    let limit = Duration::from_secs(20);
    let login = Login { user: "ann", method, stored, channel, salt_secret: b"s", limit };
    authenticate(&mut far, &mut Vec::new(), login).await.unwrap_err()
}

#[tokio::test]
async fn a_client_that_keeps_to_no_protocol_is_told_so() {
    use AuthMethod::{Password as Clear, Scram};
    let long = [b'p', 0, 1, 0, 0];
    for (method, said) in [
        (Scram, &b"Q\0\0\0\x04"[..]),
        (Scram, b"p\0\0\0\x08abcd"),
        (Scram, b"p\0\0\0\x0dSCRAM\0\0\0\0"),
        (Scram, b"p\0\0\0\x16SCRAM-SHA-256\0\xff\xff\xff\xff"),
        (Scram, &long),
        (Clear, &long),
        (Clear, b"p\0\0\0\x08hush"),
    ] {
        let rejected = answered(method, said).await;
        let word = rejected.last_word().expect("a last word");
        assert_eq!(sqlstate_of(&word[5..]), Some("08P01"), "{said:?}");
        assert!(!rejected.doubts_stored());
    }
    // Such as psql, before it asks for the password.
    let gone = answered(Scram, b"X\0\0\0\x04").await;
    assert_eq!(gone.last_word(), None);
}

#[tokio::test]
async fn logins_end_in_time() {
    let limit = Duration::from_millis(10);
    let (mut near, mut far) = tokio::io::duplex(4096);
    let (stored, channel) = (verifier(), confidential());
    let (stored, channel) = (Some(&stored), &channel);
    let login =
        Login { user: "ann", method: AuthMethod::Scram, stored, channel, salt_secret: b"s", limit };
    let silent = authenticate(&mut far, &mut Vec::new(), login).await.unwrap_err();
    assert!(matches!(silent, Rejected::Timeout) && silent.sqlstate() == "57014");
    let credentials = Credentials { user: "ann".to_owned(), secret: Secret::None };
    let (mut other, _kept) = tokio::io::duplex(4096);
    let silent = sign_in(&mut other, &[], &credentials, channel, limit).await.unwrap_err();
    assert_eq!(silent.verdict(), Verdict::TryAgain);
    near.shutdown().await.unwrap();
    let (mut closed, end) = tokio::io::duplex(4096);
    drop(end);
    let gone = sign_in(&mut closed, &[], &credentials, channel, LIMIT).await.unwrap_err();
    assert_eq!(gone.verdict(), Verdict::TryAgain);
}

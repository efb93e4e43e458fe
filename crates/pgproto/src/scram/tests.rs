use super::*;

const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const END_POINT: [u8; 32] = [7; 32];

fn verifier(password: &str) -> Verifier {
    Verifier::of_password(password.as_bytes(), *b"sixteen bytes ok")
}

/// Both sides with each other: what the server learnt, or who found what wrong.
fn talk(
    server: ServerExchange,
    binding: ClientBinding,
    secret: ClientSecret<'_>,
) -> Result<ClientKeys, ScramError> {
    let client = ClientExchange::new("client".to_owned(), binding);
    let (answer, waiting) = server.answer(client.mechanism(), client.first().as_bytes())?;
    let (proof, client) = client.prove(answer.as_bytes(), secret)?;
    let proven = waiting.check(proof.as_bytes())?;
    client.check(proven.server_final.as_bytes())?;
    Ok(proven.keys)
}

fn plain(password: &str) -> ServerExchange {
    ServerExchange::new(verifier(password), "server".to_owned(), None)
}

fn over_tls(password: &str) -> ServerExchange {
    ServerExchange::new(verifier(password), "server".to_owned(), Some(END_POINT.to_vec()))
}

/// RFC 7677, section 3.
#[test]
fn the_example_of_the_standard_is_understood() {
    let salt = message::decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
    let keys = ClientKeys::derive(b"pencil", &salt, 4096);
    let stored_key = keys.client_key.hashed();
    let server_key = keys.server_key.clone();
    let verifier = Verifier { salt, iterations: 4096, stored_key, server_key };
    let server = ServerExchange::new(verifier, SERVER_NONCE.to_owned(), None);
    let first = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    let (answer, waiting) = server.answer(SCRAM_SHA_256, first).expect("a first message");
    assert_eq!(
        answer,
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    );
    let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                 p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    let proven = waiting.check(last).expect("the proof");
    assert_eq!(proven.server_final, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    assert_eq!(proven.keys, keys);
}

#[test]
fn what_a_server_learns_signs_in_again() {
    let learnt = talk(plain("hush"), ClientBinding::Unsupported, ClientSecret::Password(b"hush"));
    let learnt = learnt.expect("the password is right");
    let again = talk(over_tls("hush"), ClientBinding::Unsupported, ClientSecret::Keys(&learnt));
    assert_eq!(again, Ok(learnt.clone()));
    let elsewhere = talk(plain("other"), ClientBinding::Unsupported, ClientSecret::Keys(&learnt));
    assert_eq!(elsewhere, Err(ScramError::WrongProof));
}

#[test]
fn wrong_passwords_and_unknown_users_fail_alike_and_late() {
    let wrong = ClientSecret::Password(b"wrong");
    assert_eq!(talk(plain("hush"), ClientBinding::Unsupported, wrong), Err(ScramError::WrongProof));
    let mock = |user| ServerExchange::mock(user, b"secret", "server".to_owned(), None);
    assert_eq!(talk(mock("x"), ClientBinding::Unsupported, wrong), Err(ScramError::WrongProof));
    let salt = |user| mock(user).answer(SCRAM_SHA_256, b"n,,n=,r=a").expect("an answer").0;
    assert_eq!(salt("x"), salt("x"));
    assert_ne!(salt("x"), salt("y"));
    assert_eq!(
        salt("x").len(),
        plain("p").answer(SCRAM_SHA_256, b"n,,n=,r=a").expect("too").0.len()
    );
}

#[test]
fn channel_binding_is_of_this_connection_or_not_at_all() {
    let secret = ClientSecret::Password(b"hush");
    let end_point = |byte| ClientBinding::EndPoint(vec![byte; 32]);
    assert!(talk(over_tls("hush"), end_point(7), secret).is_ok());
    assert!(talk(over_tls("hush"), ClientBinding::Unsupported, secret).is_ok());
    assert!(talk(plain("hush"), ClientBinding::NotOffered, secret).is_ok());
    let wrong = |result| matches!(result, Err(ScramError::ChannelBinding(_)));
    assert!(wrong(talk(over_tls("hush"), end_point(8), secret)), "another certificate");
    assert!(wrong(talk(over_tls("hush"), ClientBinding::NotOffered, secret)), "downgraded");
    assert_eq!(talk(plain("hush"), end_point(7), secret), Err(ScramError::Mechanism));
    for (mechanism, first) in [
        (SCRAM_SHA_256_PLUS, "n,,n=,r=a"),
        (SCRAM_SHA_256, "p=tls-server-end-point,,n=,r=a"),
        (SCRAM_SHA_256_PLUS, "p=tls-unique,,n=,r=a"),
    ] {
        let answer = over_tls("hush").answer(mechanism, first.as_bytes());
        assert!(matches!(answer, Err(ScramError::ChannelBinding(_))), "{mechanism} {first}");
    }
}

#[test]
fn malformed_messages_are_refused() {
    let firsts: [&[u8]; 11] = [
        b"",
        b"n",
        b"n,",
        b"n,,",
        b"n,a=x,n=,r=a",
        b"x,,n=,r=a",
        b"n,,m=x,n=,r=a",
        b"n,,n=",
        b"n,,n=,r=",
        b"n,,n=,r=a b",
        b"n,,n=\xff,r=a",
    ];
    for first in firsts {
        let answer = plain("hush").answer(SCRAM_SHA_256, first);
        assert!(matches!(answer, Err(ScramError::Malformed(_))), "{first:?}");
    }
    let check = |last: &[u8]| {
        let (_, waiting) = plain("hush").answer(SCRAM_SHA_256, b"n,,n=,r=a").expect("valid");
        waiting.check(last).map(|_| ())
    };
    for last in [&b""[..], b"c=biws", b"c=biws,r=a", b"c=biws,r=aserver", b"c=biws,r=aserver,p=AA"]
    {
        assert!(matches!(check(last), Err(ScramError::Malformed(_))), "{last:?}");
    }
    assert!(matches!(check(b"c=eSws,r=aserver,p="), Err(ScramError::ChannelBinding(_))));
}

#[test]
fn a_client_trusts_no_server_that_cannot_prove_itself() {
    let client = || ClientExchange::new("abc".to_owned(), ClientBinding::Unsupported);
    let secret = ClientSecret::Password(b"hush");
    let prove = |first: &str| client().prove(first.as_bytes(), secret).map(|_| ());
    assert_eq!(prove("r=abcd,s=AAAA,i=1"), Ok(()));
    for first in ["", "r=abc,s=AAAA,i=1", "r=xyz,s=AAAA,i=1", "r=abcd,s=?,i=1", "r=abcd,s=AAAA,i=x"]
    {
        assert!(matches!(prove(first), Err(ScramError::Malformed(_))), "{first}");
    }
    assert_eq!(prove("r=abcd,s=AAAA,i=0"), Err(ScramError::Iterations(0)));
    assert_eq!(prove("r=abcd,s=AAAA,i=1000001"), Err(ScramError::Iterations(1_000_001)));
    let last = |message: &str| {
        let (_, waiting) = client().prove(b"r=abcd,s=AAAA,i=1", secret).expect("valid");
        waiting.check(message.as_bytes())
    };
    let other = message::encode(&[1; 32]);
    assert_eq!(last(&format!("v={other}")), Err(ScramError::WrongSignature));
    assert_eq!(last("e=other-error"), Err(ScramError::Refused("other-error".to_owned())));
    assert!(matches!(last("v=AA"), Err(ScramError::Malformed(_))));
}

#[test]
fn verifiers_are_read_and_not_shown() {
    // `CREATE ROLE … PASSWORD 'pencil'` with the salt of RFC 7677.
    let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
                WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let verifier = Verifier::parse(text).expect("a verifier");
    assert!(verifier.is_of(b"pencil") && !verifier.is_of(b"pencils"));
    assert!(!format!("{verifier:?}").contains("WG5d"));
    for wrong in [
        "",
        "pencil",
        "SCRAM-SHA-256$",
        "SCRAM-SHA-256$0:AAAA$AA==:AA==",
        &text[..text.len() - 4],
        &text.replace("4096", "-1"),
        &text.replace("4096", "99999999999"),
        &text.replace("W22", "?22"),
    ] {
        assert_eq!(Verifier::parse(wrong), None, "{wrong}");
    }
}

/// RFC 4013, section 3, and PostgreSQL's tests of SASLprep.
#[test]
fn passwords_are_normalised_as_postgresql_does() {
    for (one, other) in
        [("I\u{ad}X", "IX"), ("\u{aa}", "a"), ("\u{2168}", "IX"), ("a\u{a0}b", "a b")]
    {
        assert!(verifier(one).is_of(other.as_bytes()), "{one:?}");
    }
    for raw in ["\u{7}", "\u{627}1", "\u{ad}"] {
        assert!(verifier(raw).is_of(raw.as_bytes()), "{raw:?} is taken as it is");
    }
    assert!(!verifier("user").is_of(b"USER"));
    assert!(Verifier::of_password(b"\xff", [0; 16]).is_of(b"\xff"), "no UTF-8");
}

/// A small generator (xorshift): the tests of a pure crate draw no randomness from outside.
fn next(seed: &mut u64) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    usize::try_from(*seed >> 33).expect("31 bits")
}

/// A good message with a few bytes changed, cut or doubled.
fn damaged(good: &[u8], seed: &mut u64) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=next(seed) % 3 {
        let at = next(seed) % bytes.len().max(1);
        match next(seed) % 3 {
            0 => bytes.truncate(at),
            1 => bytes.insert(at.min(bytes.len()), b"\0,=a\xff"[next(seed) % 5]),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1),
        }
    }
    bytes
}

#[test]
fn damaged_messages_never_end_in_success() {
    let (mut seed, verifier) = (1, verifier("hush"));
    let plain = || ServerExchange::new(verifier.clone(), "server".to_owned(), None);
    let secret = ClientSecret::Password(b"hush");
    let client = || ClientExchange::new("client".to_owned(), ClientBinding::Unsupported);
    let first = client().first();
    let begin = || plain().answer(SCRAM_SHA_256, first.as_bytes()).expect("valid");
    let (answer, waiting) = begin();
    let (proof, _) = client().prove(answer.as_bytes(), secret).expect("valid");
    let last = waiting.check(proof.as_bytes()).expect("valid").server_final;
    for _ in 0..2_000 {
        // A damaged first message may still be one; that nothing panics is what counts.
        let other = damaged(first.as_bytes(), &mut seed);
        plain().answer(SCRAM_SHA_256, &other).map(drop).unwrap_or_default();
        let other = damaged(proof.as_bytes(), &mut seed);
        assert!(other == proof.as_bytes() || begin().1.check(&other).is_err(), "{other:?}");
        let waiting =
            client().prove(answer.as_bytes(), ClientSecret::Keys(&keys())).expect("valid").1;
        let other = damaged(last.as_bytes(), &mut seed);
        assert!(waiting.check(&other).is_err(), "keys of another password: {other:?}");
    }
}

fn keys() -> ClientKeys {
    ClientKeys { client_key: Key::new([1; 32]), server_key: Key::new([2; 32]) }
}

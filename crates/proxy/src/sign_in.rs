//! Signing in at a server.

use std::collections::BTreeMap;

use pgproto::wire::{CancelKey, Cut, Cutter, sqlstate_of};
use route::link::Reported;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::dial::OpenError;
use crate::hub::PoolKey;

pub(crate) struct SignedIn {
    pub(crate) reported: Reported,
    pub(crate) key: CancelKey,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SignInError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("the server refused: {message}")]
    Refused { sqlstate: String, message: String },
    #[error("unsupported")]
    Unsupported,
}

impl SignInError {
    pub(crate) fn refusal(&self) -> Option<(String, String)> {
        match self {
            SignInError::Refused { sqlstate, message }
                if !matches!(sqlstate.as_str(), "57P03" | "53300") =>
            {
                Some((sqlstate.clone(), message.clone()))
            }
            _ => None,
        }
    }
}

pub(crate) async fn run(stream: &mut TcpStream, key: &PoolKey) -> Result<SignedIn, SignInError> {
    let mut body = 0x0003_0000_u32.to_be_bytes().to_vec();
    for (name, value) in [("user", &key.user), ("database", &key.database)] {
        body.extend(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap_or(0);
    stream.write_all(&[&length.to_be_bytes()[..], &body].concat()).await?;
    let mut bytes = Vec::new();
    let mut cutter = Cutter::default();
    let mut reported = BTreeMap::new();
    let mut cancel = None;
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        let mut rest = bytes.as_slice();
        while let Some(Cut::Begin { tag, bytes, .. }) =
            cutter.next(&mut rest, |_, t| t).map_err(std::io::Error::other)?
        {
            let body = &bytes[5..];
            match tag {
                b'R' if body == [0; 4] => {}
                b'R' => return Err(SignInError::Unsupported),
                b'S' => {
                    let mut parts =
                        body.split(|b| *b == 0).map(|p| String::from_utf8_lossy(p).into_owned());
                    if let (Some(n), Some(v)) = (parts.next(), parts.next()) {
                        reported.insert(n, v);
                    }
                }
                b'K' => cancel = CancelKey::parse(body),
                b'Z' => {
                    let key = cancel.ok_or(SignInError::Unsupported)?;
                    return Ok(SignedIn { reported: Reported(reported), key });
                }
                b'E' => {
                    return Err(SignInError::Refused {
                        sqlstate: sqlstate_of(body).unwrap_or("XX000").to_owned(),
                        message: String::from_utf8_lossy(body).into_owned(),
                    });
                }
                _ => {}
            }
        }
        bytes = rest.to_vec();
    }
}

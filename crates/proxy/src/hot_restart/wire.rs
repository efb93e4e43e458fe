//! What two proxies say to each other: frames of a version, a length and JSON, some with an open
//! file beside them.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Of this conversation; both sides speak the same.
const VERSION: u16 = 1;
/// Of a frame's content.
const BODY_BYTES_MAX: usize = 4096;
/// Version and length.
const HEADER_BYTES: usize = 6;
/// How long the kernel may take to take a frame.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// Who answers here?
    WhoIsInCharge,
    /// I want to serve instead of you.
    TakeOver,
    /// I have what I need but the name in the DCS.
    Ready,
    /// I accept clients.
    Serving,
    /// Cancel what the client with this key runs.
    Cancel { process: u32, secret: Vec<u8> },

    /// This process.
    InCharge { pid: u32 },
    /// Here is a listening socket, with what it is for.
    Socket { name: String },
    /// Here is the socket of this conversation.
    ControlSocket,
    /// Here is a connection to a proxy that drains, whose keys have this mark.
    Predecessor { mark: u16 },
    /// That is all. My keys have this mark.
    AllSent { mark: u16 },
    /// The name in the DCS is yours.
    NameFree,
    /// I accept no more clients.
    Draining,
    /// The client is asked to; or it is not here.
    Cancelled,
    /// No, and I serve on.
    Refused { why: String },
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A key is a secret.
            Message::Cancel { .. } => f.write_str("Cancel"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Why nothing could be said or heard.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// The kernel refused.
    #[error("the control connection failed")]
    Io(#[from] io::Error),
    /// The other side has closed, or ended.
    #[error("the other proxy closed the connection")]
    Closed,
    /// The other side is silent.
    #[error("the other proxy said nothing for {limit:?}")]
    Silent {
        /// For how long.
        limit: Duration,
    },
    /// The other side is of another time.
    #[error(
        "the other proxy speaks version {theirs} of the take-over, this one version {ours}: \
         stop it and start anew"
    )]
    Version {
        /// What it speaks.
        theirs: u16,
        /// What we speak.
        ours: u16,
    },
    /// A frame beyond the limit.
    #[error("the other proxy sent a message of {bytes} bytes, at most {most} are taken")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// A frame that says nothing known.
    #[error("the other proxy sent a message that is not understood")]
    Nonsense(#[from] serde_json::Error),
    /// Not as many open files as were announced.
    #[error("the other proxy sent more open files than one with a message, or too many are open")]
    OpenFiles,
}

/// A conversation. One task at a time speaks, and one hears.
#[derive(Debug)]
pub(crate) struct Talk {
    stream: UnixStream,
}

impl Talk {
    pub(crate) fn new(stream: UnixStream) -> Talk {
        Talk { stream }
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Says something.
    pub(crate) async fn send(
        &self,
        message: &Message,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(), TalkError> {
        let frame = frame(message)?;
        timeout(SEND_LIMIT, self.send_frame(&frame, file))
            .await
            .unwrap_or(Err(TalkError::Silent { limit: SEND_LIMIT }))
    }

    async fn send_frame(
        &self,
        frame: &[u8],
        mut file: Option<BorrowedFd<'_>>,
    ) -> Result<(), TalkError> {
        let mut rest = frame;
        while !rest.is_empty() {
            let send = || Ok(send_some(self.stream.as_fd(), rest, file)?);
            let sent = self.stream.async_io(Interest::WRITABLE, send).await?;
            // The file goes with the first byte.
            file = None;
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Completes when the other side has said something, or has closed.
    ///
    /// Cancel safety: safe, nothing is taken.
    pub(crate) async fn until_it_speaks(&self) {
        let peek = || Ok(recv(&self.stream, &mut [0; 1], RecvFlags::PEEK)?);
        // An error is an end, too.
        drop(self.stream.async_io(Interest::READABLE, peek).await);
    }

    /// Hears the next message.
    ///
    /// Cancel safety: not safe, what was read of a message is lost.
    pub(crate) async fn receive(
        &self,
        limit: Duration,
    ) -> Result<(Message, Option<OwnedFd>), TalkError> {
        timeout(limit, self.receive_frame()).await.unwrap_or(Err(TalkError::Silent { limit }))
    }

    async fn receive_frame(&self) -> Result<(Message, Option<OwnedFd>), TalkError> {
        let mut file = None;
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header, &mut file).await?;
        let [v0, v1, l0, l1, l2, l3] = header;
        let theirs = u16::from_be_bytes([v0, v1]);
        if theirs != VERSION {
            return Err(TalkError::Version { theirs, ours: VERSION });
        }
        let bytes = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if bytes > BODY_BYTES_MAX {
            return Err(TalkError::TooLong { bytes, most: BODY_BYTES_MAX });
        }
        let mut body = vec![0; bytes];
        self.fill(&mut body, &mut file).await?;
        Ok((serde_json::from_slice(&body)?, file))
    }

    async fn fill(&self, mut rest: &mut [u8], file: &mut Option<OwnedFd>) -> Result<(), TalkError> {
        while !rest.is_empty() {
            let receive = || receive_some(self.stream.as_fd(), rest);
            let received = self.stream.async_io(Interest::READABLE, receive).await?;
            if received.bytes == 0 {
                return Err(TalkError::Closed);
            }
            if received.cut_off || received.files.len() > usize::from(file.is_none()) {
                return Err(TalkError::OpenFiles);
            }
            *file = file.take().or(received.files.into_iter().next());
            rest = rest.get_mut(received.bytes..).unwrap_or_default();
        }
        Ok(())
    }
}

fn frame(message: &Message) -> Result<Vec<u8>, TalkError> {
    let body = serde_json::to_vec(message)?;
    let too_long = TalkError::TooLong { bytes: body.len(), most: BODY_BYTES_MAX };
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= BODY_BYTES_MAX);
    let mut frame = VERSION.to_be_bytes().to_vec();
    frame.extend(length.ok_or(too_long)?.to_be_bytes());
    frame.extend(body);
    Ok(frame)
}

fn send_some(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    file: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.as_slice();
    if !files.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(files)), "there is room for one");
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

struct Received {
    bytes: usize,
    files: Vec<OwnedFd>,
    /// There were more open files than there was room for.
    cut_off: bool,
}

fn receive_some(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(into)];
    let received = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            files.extend(sent);
        }
    }
    let cut_off = received.flags.contains(ReturnFlags::CTRUNC);
    Ok(Received { bytes: received.bytes, files, cut_off })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_listening_socket_arrives_with_its_message() {
        let (here, there) = UnixStream::pair().unwrap();
        let (here, there) = (Talk::new(here), Talk::new(there));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let message = Message::Socket { name: "read_write".to_owned() };
        here.send(&message, Some(listener.as_fd())).await.unwrap();
        here.send(&Message::AllSent { mark: 7 }, None).await.unwrap();
        let (said, file) = there.receive(SOON).await.unwrap();
        let arrived = TcpListener::from(file.unwrap());
        assert_eq!(said, message);
        assert_eq!(arrived.local_addr().unwrap(), listener.local_addr().unwrap());
        let (said, file) = there.receive(SOON).await.unwrap();
        assert!(said == Message::AllSent { mark: 7 } && file.is_none());
        drop(here);
        assert!(matches!(there.receive(SOON).await, Err(TalkError::Closed)));
    }

    #[tokio::test]
    async fn what_is_not_understood_is_refused() {
        let cases: [(&[u8], &str); 4] = [
            (b"\0\x02\0\0\0\0", "speaks version 2 of the take-over, this one version 1"),
            (b"\0\x01\xff\xff\xff\xff", "a message of 4294967295 bytes, at most 4096"),
            (b"\0\x01\0\0\0\x06\"what\"", "not understood"),
            (b"\0\x01\0", "closed the connection"),
        ];
        for (bytes, expected) in cases {
            let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
            there.set_nonblocking(true).unwrap();
            here.write_all(bytes).unwrap();
            drop(here);
            let talk = Talk::new(UnixStream::from_std(there).unwrap());
            let error = talk.receive(SOON).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn more_than_one_open_file_is_refused() {
        let (here, there) = UnixStream::pair().unwrap();
        let talk = Talk::new(there);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = [here.as_fd(); 3];
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        let frame = frame(&Message::TakeOver).unwrap();
        sendmsg(&here, &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL).unwrap();
        assert!(matches!(talk.receive(SOON).await, Err(TalkError::OpenFiles)));
    }

    #[test]
    fn a_key_is_not_shown() {
        let cancel = Message::Cancel { process: 1, secret: vec![42] };
        assert_eq!(cancel.to_string(), "Cancel");
    }
}

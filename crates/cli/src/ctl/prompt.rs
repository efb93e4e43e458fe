//! Questions on standard input, as click asks them.

use std::io::BufRead;
use std::os::fd::AsFd;

use super::say;
use crate::hidden::Hidden;

/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 4096;

/// The operator closed standard input instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Aborted;

impl std::fmt::Display for Aborted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Aborted!")
    }
}

impl std::error::Error for Aborted {}

/// Asks `text [default]: `; an empty answer is the default.
pub(super) async fn ask(text: &str, default: &str) -> anyhow::Result<String> {
    say(&format!("{text} [{default}]: "))?;
    let answer = line().await?;
    Ok(if answer.is_empty() { default.to_owned() } else { answer })
}

/// Asks `text: ` until something is answered.
pub(super) async fn demand(text: &str) -> anyhow::Result<String> {
    loop {
        say(&format!("{text}: "))?;
        let answer = line().await?;
        if !answer.is_empty() {
            return Ok(answer);
        }
    }
}

/// Asks `text [y/N]: ` until the answer is one of both.
pub(super) async fn confirm(text: &str) -> anyhow::Result<bool> {
    loop {
        say(&format!("{text} [y/N]: "))?;
        match line().await?.to_ascii_lowercase().as_str() {
            "y" | "yes" => return Ok(true),
            "" | "n" | "no" => return Ok(false),
            _ => say("Error: invalid input\n")?,
        }
    }
}

/// Asks `text: ` for what is not shown while it is typed, until something is answered.
pub(super) async fn hidden(text: &str) -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    let _hidden = Hidden::begin(stdin.as_fd());
    let answer = demand(text).await;
    say("\n")?;
    answer
}

/// One line without its end. Read in a thread of its own, so that the DCS client goes on.
async fn line() -> anyhow::Result<String> {
    let read = tokio::task::spawn_blocking(|| {
        let mut text = String::new();
        let bytes =
            std::io::Read::take(std::io::stdin().lock(), ANSWER_MAX).read_line(&mut text)?;
        std::io::Result::Ok((bytes, text))
    });
    let (bytes, text) = read.await??;
    if bytes == 0 {
        return Err(Aborted.into());
    }
    Ok(text.trim().to_owned())
}

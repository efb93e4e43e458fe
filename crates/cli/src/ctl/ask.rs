//! One question to one member's REST interface.

use std::time::Duration;

use serde_json::Value;
use types::{ClusterView, Member, MemberName};

use super::{CtlConfig, say};

/// How long a member may take to answer what it does not work on first.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(25);

/// An answer: status and text.
pub(super) type Answered = (u16, String);

/// Sends one request. A body is sent as JSON.
///
/// # Errors
/// The member has no address, or does not answer within the limit.
pub(super) async fn member(
    view: &ClusterView,
    name: &MemberName,
    config: &CtlConfig,
    (method, path): (&str, &str),
    body: Option<&Value>,
    limit: Duration,
) -> anyhow::Result<Answered> {
    let address = view.member(name).and_then(Member::api_address);
    let Some(address) = address else {
        anyhow::bail!("{name} has no api_url");
    };
    let body = body.map(serde_json::to_vec).transpose()?;
    let asked = config.rest.request(method, &address, path, body, config.auth(), limit);
    let (status, text) = asked.await?;
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}

/// Says how it went with one member, as patronictl does. True if it went well.
pub(super) fn report(
    answered: &anyhow::Result<Answered>,
    name: &MemberName,
    action: &str,
    quiet: bool,
) -> std::io::Result<bool> {
    let failed = match answered {
        Ok((status, text)) if *status >= 400 => {
            format!("Failed: {action} for member {name}, status code={status}, ({text})\n")
        }
        Ok(_) => {
            if !quiet {
                say(&format!("Success: {action} for member {name}\n"))?;
            }
            return Ok(true);
        }
        Err(error) => format!("Failed: {action} for member {name}, ({error:#})\n"),
    };
    say(&failed)?;
    Ok(false)
}

//! `reload`: members read their files again.

use std::process::ExitCode;
use std::time::Duration;

use api::Settings;

use super::select::Selection;
use super::store::Store;
use super::{CtlConfig, say};

/// How long one member may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(25);

/// `reload`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ReloadArgs {
    /// Whom
    #[command(flatten)]
    pub(crate) selection: Selection,
}

pub(super) async fn reload(args: ReloadArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let store = Store::open(config, &args.selection.cluster)?;
    let view = store.read().await?;
    let seconds = Settings::from_view(&view).loop_wait.as_duration().as_secs();
    for name in args.selection.of(&view, "reload").await? {
        let Some(address) = view.member(&name).and_then(types::Member::api_address) else {
            say(&format!("Failed: reload for member {name}, it has no api_url\n"))?;
            continue;
        };
        let asked =
            config.rest.request("POST", &address, "/reload", None, config.auth(), ANSWER_LIMIT);
        match asked.await {
            Ok((200, _)) => say(&format!("No changes to apply on member {name}\n"))?,
            Ok((202, _)) => say(&format!(
                "Reload request received for member {name} and will be processed within \
                 {seconds} seconds\n"
            ))?,
            Ok((status, body)) => {
                let text = String::from_utf8_lossy(&body);
                say(&format!(
                    "Failed: reload for member {name}, status code={status}, ({text})\n"
                ))?;
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                say(&format!("Failed: reload for member {name}, ({error:#})\n"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

//! `list` and `topology`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use super::store::Store;
use super::table::{Format, Layout, members_text};
use super::warnings::{lowered_text, open_rest_text};
use super::{CtlConfig, called_as_patronictl, say, timestamp};

/// What `-W` means.
const WATCH: Duration = Duration::from_secs(2);

/// `list`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ListArgs {
    /// Names of clusters; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAMES")]
    pub(crate) clusters: Vec<String>,
    /// Show some extra information
    #[arg(short, long)]
    pub(crate) extended: bool,
    /// Print the time first
    #[arg(short, long)]
    pub(crate) timestamp: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value = "pretty")]
    pub(crate) format: Format,
    /// When to repeat
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

/// `topology`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TopologyArgs {
    /// Names of clusters; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAMES")]
    pub(crate) clusters: Vec<String>,
    /// When to repeat
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

/// Repeating.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct WatchArgs {
    /// Repeat every 2 seconds
    #[arg(short = 'W')]
    pub(crate) every_two_seconds: bool,
    /// Repeat after so many seconds
    #[arg(short = 'w', long = "watch", value_name = "SECONDS", value_parser = positive)]
    pub(crate) seconds: Option<f64>,
}

impl WatchArgs {
    /// How long is waited between two outputs, if there are more than one.
    pub(super) fn interval(self) -> Option<Duration> {
        let seconds = self.seconds.map(Duration::from_secs_f64);
        seconds.or(self.every_two_seconds.then_some(WATCH))
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds is expected".to_owned())?;
    let range = 0.1..=86_400.0;
    range.contains(&seconds).then_some(seconds).ok_or("0.1 to 86400 seconds".to_owned())
}

pub(super) async fn list(args: ListArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let layout = Layout { format: args.format, extended: args.extended, tree: false };
    show(&args.clusters, args.watch, args.timestamp, layout, config).await
}

pub(super) async fn topology(args: TopologyArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let layout = Layout { format: Format::Pretty, extended: false, tree: true };
    show(&args.clusters, args.watch, false, layout, config).await
}

async fn show(
    clusters: &[String],
    watch: WatchArgs,
    with_time: bool,
    layout: Layout,
    config: &CtlConfig,
) -> anyhow::Result<ExitCode> {
    let scopes = if clusters.is_empty() { config.scope.as_slice() } else { clusters };
    if scopes.is_empty() {
        eprintln!("Listing members: No cluster names were provided");
        return Ok(ExitCode::SUCCESS);
    }
    let mut stores = Vec::with_capacity(scopes.len());
    for scope in scopes {
        stores.push((scope, Store::open(config, scope)?));
    }
    loop {
        let mut text = String::new();
        if with_time {
            text.push_str(&format!("{}\n", timestamp(0)));
        }
        for (scope, store) in &stores {
            let view = store.read().await?;
            text.push_str(&members_text(&view, scope, layout));
            if layout.format == Format::Pretty && !called_as_patronictl() {
                text.push_str(&api::in_force(&view).text());
                text.push_str(&lowered_text(&view));
                text.push_str(&open_rest_text(&view));
            }
        }
        let Some(interval) = watch.interval() else {
            say(&text)?;
            return Ok(ExitCode::SUCCESS);
        };
        if layout.format == Format::Pretty && std::io::stdout().is_terminal() {
            // Clear the terminal, cursor to the first cell.
            say("\x1b[2J\x1b[H")?;
        }
        say(&text)?;
        tokio::time::sleep(interval).await;
    }
}

//! The demo in the foreground: start, show, stop.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use lab::view;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::DemoArgs;
use super::background;
use super::drill;
use super::external;
use super::files::{self, DemoFile};
use super::herd::{self, Herd};
use super::layout::Layout;
use super::screen::{Screen, round};

/// How long the cluster may take until it is healthy.
const START_LIMIT: Duration = Duration::from_secs(240);
/// How often it is looked at while it starts.
const START_PERIOD: Duration = Duration::from_millis(200);
/// How often the table is drawn.
const TABLE_PERIOD: Duration = Duration::from_millis(500);
/// An agent that ended this often before the cluster was healthy will not do better.
const ENDS_MAX: u32 = 3;

/// How the demo ended.
enum End {
    /// By Ctrl-C or SIGTERM.
    Interrupted,
    /// The drill is done.
    Drilled(Box<drill::Report>),
}

/// Runs the demo until it is ended.
///
/// # Errors
/// It cannot be started, does not get healthy, or cannot be stopped.
pub(super) async fn foreground(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    if args.background {
        background::leave_terminal()?;
    }
    let mut screen = Screen::new(args.json);
    let result = whole(args, &mut screen).await;
    if let Err(error) = &result {
        screen.object(&json!({"event": "failed", "error": format!("{error:#}")}));
    }
    result
}

async fn whole(args: &DemoArgs, screen: &mut Screen) -> anyhow::Result<ExitCode> {
    drill::check(args)?;
    let layout = Layout::plan(args)?;
    external::check_unused(&layout).await?;
    let herd = Herd::start(layout.clone()).await;
    let end = match &herd {
        Ok(herd) => {
            tokio::select! {
                biased;
                end = interrupted() => end,
                end = Box::pin(work(args, herd, screen)) => end,
                () = herd.keep_file() => Ok(End::Interrupted),
            }
        }
        Err(_) => Ok(End::Interrupted),
    };
    if end.as_ref().is_ok_and(|end| matches!(end, End::Interrupted)) {
        screen.note("stopping");
    }
    let stopped = match herd {
        Ok(herd) => herd.stop().await,
        // It may have mounted volumes before it failed.
        Err(error) => match herd::sweep(&layout).await {
            Ok(()) => Err(error),
            Err(left) => Err(error.context(format!("{left:#}"))),
        },
    };
    let cleaned = clean(&layout).await;
    // What went wrong first is what is told.
    let end = end?;
    stopped?;
    cleaned?;
    match end {
        End::Interrupted if args.drill => Ok(ExitCode::FAILURE),
        End::Interrupted => Ok(ExitCode::SUCCESS),
        End::Drilled(report) => {
            report.show(screen);
            Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// Ready at the first signal that ends the demo. Cancel safety: yes.
async fn interrupted() -> anyhow::Result<End> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(End::Interrupted)
}

async fn work(args: &DemoArgs, herd: &Herd, screen: &mut Screen) -> anyhow::Result<End> {
    let began = Instant::now();
    until_healthy(herd, screen, began).await?;
    let file = herd.file().await;
    // Current before anybody is told that it is there.
    herd.write_file(&file)?;
    tell_healthy(screen, herd, &file, began.elapsed())?;
    if args.background {
        screen.redirect(background::log(&herd.layout.dir)?);
    }
    if args.drill {
        let report = drill::run(args, herd, screen).await?;
        return Ok(End::Drilled(Box::new(report)));
    }
    let footer = footer(&file);
    loop {
        let views = herd.views().await;
        match view::newest(&views) {
            Some(view) => screen.members(view, &footer),
            None => screen.progress("any agent to answer", began.elapsed()),
        }
        tokio::time::sleep(TABLE_PERIOD).await;
    }
}

async fn until_healthy(herd: &Herd, screen: &mut Screen, began: Instant) -> anyhow::Result<()> {
    loop {
        let what = match etcd_waits(herd).await {
            Some(what) => what,
            None => match herd.waiting_for(&herd.views().await).await {
                Some(what) => what,
                None => return Ok(()),
            },
        };
        check_services(herd)?;
        if began.elapsed() > START_LIMIT {
            bail!(
                "the cluster is not healthy after {} s; it still waits for {what}; start it with \
                 --dir DIR to find the logs in DIR/*.log",
                START_LIMIT.as_secs()
            );
        }
        screen.progress(&what, began.elapsed());
        tokio::time::sleep(START_PERIOD).await;
    }
}

async fn etcd_waits(herd: &Herd) -> Option<String> {
    for endpoint in &herd.layout.endpoints {
        if external::status(endpoint).await.is_ok_and(|status| status.has_leader) {
            return None;
        }
    }
    Some("etcd to elect its leader".to_owned())
}

/// Gives up when a program cannot be kept running at all, with the last words of its log.
fn check_services(herd: &Herd) -> anyhow::Result<()> {
    let agents = herd.nodes.iter().map(|node| &node.agent);
    for service in agents.chain(&herd.etcd).chain([&herd.proxy]) {
        let state = service.state();
        let failed_to_start = state.starts == 0 && state.last_end.is_some();
        if state.starts > ENDS_MAX || failed_to_start {
            bail!(
                "{} cannot be kept running ({}): {}",
                service.spec.name,
                state.last_end.unwrap_or_default(),
                last_line(&service.spec.log)
            );
        }
    }
    Ok(())
}

fn last_line(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or("it said nothing").to_owned()
}

fn tell_healthy(
    screen: &mut Screen,
    herd: &Herd,
    file: &DemoFile,
    took: Duration,
) -> anyhow::Result<()> {
    let mut event = json!({"event": "healthy", "seconds": round(took), "dir": herd.layout.dir});
    if let (Value::Object(event), Value::Object(file)) = (&mut event, serde_json::to_value(file)?) {
        event.extend(file);
    }
    screen.object(&event);
    screen.text(&format!(
        "healthy after {:.1} s, in {}\n{}",
        took.as_secs_f64(),
        herd.layout.dir.display(),
        connections(file)
    ));
    Ok(())
}

fn connections(file: &DemoFile) -> String {
    format!("read-write  psql '{}'\nread-only   psql '{}'", file.read_write, file.read_only)
}

fn footer(file: &DemoFile) -> String {
    let restart = herd::RESTART_AFTER.as_secs();
    format!(
        "{}\nKill what you like: an agent that dies is started again after {restart} s. \
         Ctrl-C stops everything.",
        connections(file)
    )
}

/// Removes what is not to be kept.
async fn clean(layout: &Layout) -> anyhow::Result<()> {
    if layout.temporary {
        external::forget(layout).await?;
        return background::remove(&layout.dir);
    }
    // The demo is over: a file that says what runs where would be wrong.
    let file = files::demo_file(&layout.dir);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
